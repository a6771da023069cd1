"""What is measured of each adapter of an expert: the cells in the plan, and what their process makes of them."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from fakes import refusal, save_adapter
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from svf_rl.experts.weight_changes import weight_changes
from svf_rl.models.arguments import ModelArguments
from svf_rl.quickstart import model_path
from svf_rl.reproduce import worker
from svf_rl.reproduce.arguments import PARTS, ReproduceArguments
from svf_rl.reproduce.comparison import read_comparison
from svf_rl.reproduce.launch import hold_results, run_cells
from svf_rl.reproduce.plan import make_plan
from svf_rl.reproduce.run import reproduce
from svf_rl.storage.files import write_json

TEXT = "Tom has 3 eggs. He buys 2 more. How many eggs does he have now? He has 5 eggs, and eats one of them. " * 4
LORA = {"adapter": "lora", "lora_r": 8}
FORGOTTEN = {"forgotten": {"text": "text.txt", "window": 48}}


@pytest.fixture
def written(write_comparison, tmp_path):
    """`written(**changes)`: the file of a comparison beside `text.txt`."""
    (tmp_path / "text.txt").write_text(TEXT)
    return lambda **changes: write_comparison(**{"unseen": None, "lora": LORA, **changes})


def plan_of(path: Path, parts=PARTS):
    return make_plan(read_comparison(path), path.parent / "out", parts)


@pytest.fixture
def made(written, monkeypatch):
    """`made(kind, **changes)`: makes the cell of that kind for the expert math with adapters in place of trained ones,
    by SVF and by LoRA, whatever is there of it; returns the cell."""

    def make(kind: str, **changes):
        values = {"weight_changes": True, "probes": FORGOTTEN, "evaluation": {"backend": "transformers"}, **changes}
        plan = plan_of(written(**values))
        (cell,) = [cell for cell in plan.cells if cell.kind == kind and "math-svf-seed0" in cell.needs]
        lora = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
        for name, config in (("math-svf-seed0", None), ("math-lora-seed0", lora)):
            if not (folder := plan.out / "runs" / name).exists():
                save_adapter(folder, config, 1, 0.3)
                write_json(folder / "summary.json", {"recipe": {"dtype": "float32"}})
        record = Path(cell.command[-1])
        write_json(record, {"kind": cell.kind, "settings": cell.settings, "spec": cell.spec})
        monkeypatch.setattr(sys, "argv", ["worker", str(record)])
        assert worker.main() == 0
        return cell

    return make


def summary(cell):
    return json.loads(cell.result.read_text())


# ---- the plan


def test_each_expert_has_a_cell_for_what_moved_and_one_for_each_text(written):
    ablations = {"experts": ["math"], "variants": {"no KL": {"beta": 0}}}
    plan = plan_of(written(weight_changes=True, probes=FORGOTTEN, ablations=ablations))
    cells = {cell.name: cell for cell in plan.cells if cell.kind in ("changes", "text")}
    assert set(cells) == {"math-changes", "code-changes", "probe-forgotten-math", "probe-forgotten-code"}
    for name in ("math-changes", "probe-forgotten-math"):
        assert cells[name].needs == ("math-svf-seed0", "math-lora-seed0", "math-no-KL-seed0")
        assert list(cells[name].spec["adapters"]) == list(cells[name].settings["adapters"]) == list(cells[name].needs)
    assert cells["code-changes"].folder == plan.out / "changes" / "code"
    assert cells["probe-forgotten-code"].folder == plan.out / "probes" / "forgotten" / "code"
    assert "2 of a text, 2 of what moved" in str(plan)


def test_they_are_made_with_the_probes_alone_and_only_where_they_are_asked_for(written):
    assert not [cell for cell in plan_of(written()).cells if cell.kind in ("changes", "text")]
    path = written(weight_changes=True, probes=FORGOTTEN)
    assert not [cell for cell in plan_of(path, ["fine_tuning"]).cells if cell.kind in ("changes", "text")]
    kinds = [cell.kind for cell in plan_of(written(weight_changes=True), ["probes"]).cells]
    assert kinds == ["training", "training", "changes", "changes"]


def test_another_text_is_another_cell_and_another_name_of_it_is_not(written, tmp_path):
    def settings(file: str):
        (cell, _) = [c for c in plan_of(written(probes={"a": {"text": file}})).cells if c.kind == "text"]
        return cell.settings

    (tmp_path / "copy.txt").write_text(TEXT)
    (tmp_path / "other.txt").write_text(TEXT[1:])
    assert settings("text.txt") == settings("copy.txt")
    assert settings("text.txt") != settings("other.txt")


def test_a_text_is_of_the_methods_that_the_probe_names(written):
    plan = plan_of(written(probes={"forgotten": {**FORGOTTEN["forgotten"], "methods": ["lora"]}}))
    assert [cell.needs for cell in plan.cells if cell.kind == "text"] == [("math-lora-seed0",), ("code-lora-seed0",)]


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        *(
            ({"text": "text.txt", key: value}, f"probe 'a': {key} does not go with text")
            for key, value in (
                ("options", {"shots": 0}), ("experts", {"math": {}}), ("others", True), ("temperature", 1.0),
                ("samples", 2),
            )
        ),
        ({"text": "nowhere.txt"}, "probe 'a': text nowhere.txt: there is no file"),
        ({"text": "no_such_package:a.txt"}, "probe 'a': text no_such_package:a.txt: there is no package"),
        ({"text": "text.txt", "limit": 0}, "probe 'a': limit must be at least 1, not 0"),
        ({"text": "text.txt", "window": "wide"}, "probe 'a': window must be an integer"),
        ({"text": 3}, "probe 'a': text must be a string"),
        ({"window": 64}, "probe 'a': window is for a text"),
        ({"text": "text.txt", "window": 1}, "a window of 1 tokens has none to score"),
        ({"text": "text.txt", "window": 100000}, "a window of 100000 tokens does not fit"),
        ({"text": "empty.txt"}, "empty.txt has fewer than two tokens"),
    ],
)  # fmt: skip
def test_a_text_that_cannot_be_scored_is_known_before_anything_runs(written, tmp_path, probe, message):
    (tmp_path / "empty.txt").touch()
    path = written(probes={"a": probe})
    assert message in refusal(lambda: reproduce(path, ReproduceArguments(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_weight_changes_are_true_or_false(written):
    assert "weight_changes must be true or false" in refusal(lambda: read_comparison(written(weight_changes="all")))


# ---- what moved


def test_what_moved_is_measured_for_each_adapter(made):
    cell = made("changes")
    adapters = summary(cell)["adapters"]
    assert list(adapters) == ["math-svf-seed0", "math-lora-seed0"]
    expected = weight_changes(
        ModelArguments("quickstart", dtype="float32"), cell.folder.parents[1] / "runs" / "math-lora-seed0"
    )
    assert adapters["math-lora-seed0"] == {"matrices": [each.to_dict() for each in expected]}
    for matrix in adapters["math-svf-seed0"]["matrices"]:
        assert list(matrix) == ["layer", "module", "relative", "stable_rank", "effective_rank", "diagonal"]
        assert matrix["diagonal"] == pytest.approx(1)


def test_what_was_measured_is_kept_until_its_adapter_changes(made, capsys):
    cell = made("changes")
    first = summary(cell)
    cell.result.unlink()
    capsys.readouterr()
    assert summary(made("changes")) == first
    assert "measured" not in capsys.readouterr().out
    save_adapter(cell.folder.parents[1] / "runs" / "math-svf-seed0", None, 2, 0.3)
    after = summary(made("changes"))
    assert "measured: math-svf-seed0\n" in (printed := capsys.readouterr().out)
    assert "math-lora-seed0" not in printed
    assert after["adapters"]["math-svf-seed0"] != first["adapters"]["math-svf-seed0"]
    assert after["adapters"]["math-lora-seed0"] == first["adapters"]["math-lora-seed0"]


# ---- a text


@torch.no_grad()
def losses(adapter: Path | None, window: int) -> list[float]:
    """transformers' own, of each window."""
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    ids = torch.tensor(AutoTokenizer.from_pretrained(model_path())(TEXT, add_special_tokens=False)["input_ids"])
    return [model.eval()(input_ids=part[None], labels=part[None]).loss.item() for part in ids.split(window)]


@pytest.mark.parametrize("backend", ["transformers", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.slow])])
def test_a_text_has_the_loss_of_transformers_in_each_window(made, backend):
    cell = made("text", evaluation={"backend": backend, "enforce_eager": True})
    found, runs = summary(cell), cell.folder.parents[2] / "runs"
    assert list(found) == ["text", "window", "tokens", "base", "adapters"]
    assert (found["text"], found["window"]) == ("text.txt", 48)
    assert set(found["tokens"][:-1]) == {47}
    assert 0 < found["tokens"][-1] <= 47
    assert len(found["tokens"]) > 2
    assert found["base"] == pytest.approx([-loss for loss in losses(None, 48)], abs=1e-4)
    for name in ("math-svf-seed0", "math-lora-seed0"):
        assert found["adapters"][name] == pytest.approx([-loss for loss in losses(runs / name, 48)], abs=1e-4)
        assert abs(found["adapters"][name][0] - found["base"][0]) > 0.01


def test_a_limit_is_the_number_of_windows(made):
    whole = summary(made("text"))
    few = summary(made("text", probes={"forgotten": {**FORGOTTEN["forgotten"], "limit": 2}}))
    assert few["tokens"] == [47, 47]
    assert few["base"] == pytest.approx(whole["base"][:2], abs=1e-5)


def test_what_was_scored_is_kept_until_its_adapter_changes(made, capsys):
    cell = made("text")
    first = summary(cell)
    cell.result.unlink()
    capsys.readouterr()
    assert summary(made("text")) == first
    assert "measured" not in capsys.readouterr().out
    save_adapter(cell.folder.parents[2] / "runs" / "math-lora-seed0", None, 2, 0.3)
    after = summary(made("text"))
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("measured")]
    assert printed == ["measured: math-lora-seed0"]
    assert after["base"] == first["base"]
    assert after["adapters"]["math-svf-seed0"] == first["adapters"]["math-svf-seed0"]
    assert after["adapters"]["math-lora-seed0"] != first["adapters"]["math-lora-seed0"]


# ---- the whole


@pytest.mark.slow
def test_trained_runs_are_measured_by_the_cells_processes_and_only_once(written):
    quick = {"backend": "transformers", "limit": 12}
    path = written(weight_changes=True, probes=FORGOTTEN, evaluation=quick, max_steps=1)
    plan = plan_of(path, ["fine_tuning", "probes"])
    with hold_results(plan.out) as lock:
        assert run_cells(plan.cells, plan.out, 1, os.environ, lock).failed == {}
        assert run_cells(plan.cells, plan.out, 1, os.environ, lock).made == set()
    for expert in ("math", "code"):
        runs = [f"{expert}-svf-seed0", f"{expert}-lora-seed0"]
        moved = json.loads((plan.out / f"changes/{expert}/summary.json").read_text())["adapters"]
        assert list(moved) == runs
        assert all(matrix["relative"] > 0 for run in runs for matrix in moved[run]["matrices"])
        assert list(json.loads((plan.out / f"probes/forgotten/{expert}/summary.json").read_text())["adapters"]) == runs
