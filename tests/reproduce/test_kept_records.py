"""What earlier calls left: answers of adapters that are gone are made again, those to other questions are refused."""

import shutil
import sys
from pathlib import Path

import pytest
from fakes import refusal, save_adapter

from svf_rl.reproduce import worker
from svf_rl.reproduce.cells import is_done, record_path
from svf_rl.reproduce.comparison import read_comparison
from svf_rl.reproduce.plan import make_plan
from svf_rl.reproduce.raw import gather
from svf_rl.storage.files import write_json

QUICKSTART = Path(__file__).resolve().parents[2] / "recipes" / "quickstart.yaml"
SEARCH = {"shots": 1, "population": 2, "generations": 1, "samples": 0, "method": "random",
          "weights": {"greedy": 1.0, "sampled": 0.0, "likelihood": 0.0}}  # fmt: skip
QUICK = {"backend": "transformers", "limit": 2}


@pytest.fixture
def planned(write_comparison, tmp_path):
    """`planned(kind, **changes)`: the plan with adapters in place of trained ones, and its first cell of that kind."""

    def plan_cell(kind, **changes):
        values = {"evaluation": QUICK, "few_shot": SEARCH, **changes}
        plan = make_plan(read_comparison(write_comparison(**values)), tmp_path / "out", [kind])
        for seed, run in enumerate(plan.runs):
            if not run.cell.folder.exists():
                train(run, seed)
        return plan, next(cell for cell in plan.cells if cell.kind == {"fine_tuning": "evaluation"}.get(kind, kind))

    return plan_cell


def train(run, seed):
    shutil.rmtree(run.cell.folder, ignore_errors=True)
    save_adapter(run.cell.folder, None, seed, 0.3)
    write_json(run.cell.folder / "summary.json", {"recipe": {"dtype": "float32"}})


def work(plan, cell, monkeypatch):
    record = record_path(plan.out, cell.name)
    write_json(record, {"kind": cell.kind, "settings": cell.settings, "spec": cell.spec})
    monkeypatch.setattr(sys, "argv", ["worker", str(record)])
    return worker.main()


def test_an_evaluation_asks_an_adapter_again_that_was_trained_again(planned, monkeypatch, capsys):
    math = {"recipe": str(QUICKSTART), "skill": "math"}
    plan, cell = planned("fine_tuning", experts={"math": math}, lora={"adapter": "lora", "lora_r": 8}, unseen=None)
    assert work(plan, cell, monkeypatch) == 0
    assert is_done(cell, plan.out)
    files = {name: cell.folder / name / "quickstart-math.jsonl" for name in ("base", *cell.needs)}
    before = {name: (file.stat().st_mtime_ns, file.read_text()) for name, file in files.items()}
    train(next(run for run in plan.runs if run.cell.name == "math-svf-seed0"), 7)
    assert not is_done(cell, plan.out)  # also where a call ended between the training and the evaluation
    capsys.readouterr()
    assert work(plan, cell, monkeypatch) == 0
    assert "made again, its adapter is another one now: math-svf-seed0\n" in capsys.readouterr().out
    after = {name: (file.stat().st_mtime_ns, file.read_text()) for name, file in files.items()}
    assert [name for name in files if after[name] != before[name]] == ["math-svf-seed0"]
    assert is_done(cell, plan.out)


def test_an_adaptation_is_of_the_experts_and_questions_of_now(planned, monkeypatch, capsys):
    plan, cell = planned("adaptation")
    assert work(plan, cell, monkeypatch) == 0
    assert is_done(cell, plan.out)
    files = {path.stem: path for path in (cell.folder / "exam").glob("*.jsonl")}
    assert set(files) == {"base", "math", "code", "mean", "few-shot-1"}
    before = {name: file.stat().st_mtime_ns for name, file in files.items()}

    def kept(failed):
        monkeypatch.setattr("svf_rl.reproduce.raw._run", lambda run, failed: {})  # the runs themselves left nothing
        return set(gather(plan, failed)["adaptations"][0]["seeds"]["0"]["answers"])

    # of an adaptation that failed, answers of what is there still count
    assert kept({cell.name: "out of memory"}) == set(files)
    assert kept({cell.name: "needs code-svf-seed0", "code-svf-seed0": "out of memory"}) == {"base", "math"}
    train(next(run for run in plan.runs if run.expert == "code"), 7)
    assert kept({cell.name: "out of memory"}) == {"base", "math"}

    assert not is_done(cell, plan.out)
    assert work(plan, cell, monkeypatch) == 0
    assert {name for name, file in files.items() if file.stat().st_mtime_ns != before[name]} == {
        "code", "mean", "few-shot-1",
    }  # fmt: skip

    records = files["base"].read_text()
    files["base"].write_text(records.replace('"prompt": "', '"prompt": "Once more: ', 1))
    capsys.readouterr()
    assert work(plan, cell, monkeypatch) == 1
    told = capsys.readouterr().err
    assert "has another prompt now" in told
    assert f"or remove {cell.folder / 'exam'}" in told


def test_answers_to_other_questions_are_refused_before_anything_runs(planned):
    plan, cell = planned("adaptation")
    exam = cell.folder / "exam"
    exam.mkdir(parents=True)
    (exam / "base.jsonl").touch()
    write_json(record_path(plan.out, cell.name), {"settings": cell.settings})
    for changes, named in (
        ({"unseen": {"exam": {"task": "exam", "wording": "reworded"}}}, "unseen.options.wording"),
        ({"few_shot": {**SEARCH, "population": 3}}, "few_shot.population: 2 there, 3 here"),
        ({"evaluation": {**QUICK, "limit": 1}}, "evaluation.limit"),
    ):
        told = refusal(lambda changes=changes: is_done(planned("adaptation", **changes)[1], plan.out))
        assert f"{exam} was made with other settings ({named}" in told
        assert "remove that folder, its answers with it" in told
    more = planned("adaptation", unseen={"exam": {"task": "exam"}, "more": {"task": "exam"}})[1]
    assert not is_done(more, plan.out)  # another task beside it, or more shots, are no reason


def test_what_a_call_for_more_has_made_is_made_for_a_part_of_it(planned):
    plan, cell = planned("fine_tuning")
    settings = {**cell.settings, "adapters": {**cell.settings["adapters"], "math-svf-seed1": {"seed": 1}}}
    write_json(record_path(plan.out, cell.name), {"settings": settings})
    write_json(cell.result, {})
    assert is_done(cell, plan.out)
    plan, cell = planned("adaptation")
    settings = {**cell.settings, "shots": [1, 3], "adapters": {**cell.settings["adapters"], "dispatch": {}}}
    write_json(record_path(plan.out, cell.name), {"settings": settings})
    write_json(cell.result, {})
    assert is_done(cell, plan.out)
    write_json(record_path(plan.out, cell.name), {"settings": {**settings, "compare": False}})
    assert not is_done(cell, plan.out)
