"""What is read of a run folder, of unfinished and damaged ones too."""

import json

import pytest
from made_runs import jsonl, metrics, update

from svf_rl.errors import SVFError
from svf_rl.report.evaluation_folder import is_evaluation, read_evaluation
from svf_rl.runs.run_folder import read_run


def test_a_finished_run(write_run):
    run = read_run(write_run("math"))
    assert (run.name, run.finished, run.steps, run.task) == ("math", True, 10, "quickstart:math")
    assert [line.step for line in run.updates] == list(range(1, 11))
    assert [(line.step, line.values["eval_accuracy"]) for line in run.evaluations] == [(5, 0.505), (10, 0.51)]
    assert (run.before.value, run.before.n) == (0.5, 200)
    assert (run.after.value, run.after.n) == (0.75, 200)
    assert run.best_step == 10
    assert run.rewards == ["numeric"]
    assert run.mean("reward") == pytest.approx(0.055)
    assert run.mean("of nobody") is None


def test_a_run_that_is_being_written_has_a_torn_last_line_and_no_summary(write_run):
    folder = write_run("now", finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "loss": 0.')
    run = read_run(folder)
    assert (run.finished, run.steps, run.task, run.after) == (False, 10, None, None)
    assert run.before.value == 0.5
    assert run.adapter() is None


def test_the_adapter_of_an_unfinished_run_is_that_of_its_last_checkpoint(write_run):
    folder = write_run("now", finished=False)
    for step in (5, 10, 20):
        (folder / f"checkpoint-{step}").mkdir()
    for step in (5, 10):  # the run was killed while it wrote the third
        (folder / f"checkpoint-{step}" / "adapter_model.safetensors").touch()
    assert read_run(folder).adapter() == folder / "checkpoint-10"


def test_a_resumed_run_counts_from_its_checkpoint(write_run):
    folder = write_run("resumed", finished=False)
    again = [update(step, reward=0.9) for step in (6, 7)]
    (folder / "metrics.jsonl").write_text(jsonl(metrics(10) + again))
    run = read_run(folder)
    assert [line.step for line in run.updates] == [1, 2, 3, 4, 5, 6, 7]
    assert [line.values["reward"] for line in run.updates[-2:]] == [0.9, 0.9]
    assert [line.step for line in run.evaluations] == [5]


def test_what_is_no_run_folder(write_run, tmp_path):
    with pytest.raises(SVFError, match="is not a folder"):
        read_run(tmp_path / "missing")
    with pytest.raises(SVFError, match="is not a folder"):
        read_run(tmp_path / ("x" * 300))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SVFError, match=r"not a run folder: it has no metrics\.jsonl"):
        read_run(tmp_path / "empty")
    (tmp_path / "empty" / "metrics.jsonl").touch()
    with pytest.raises(SVFError, match="no metrics yet"):
        read_run(tmp_path / "empty")


@pytest.mark.parametrize("line", ["not JSON", "[1]", '{"loss": 1}', '{"step": "?"}', "null", '{"step": 1e999}'])
def test_a_damaged_line_is_named(line, write_run):
    folder = write_run("damaged", finished=False)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([lines[0], line, *lines[1:]]) + "\n")
    with pytest.raises(SVFError, match="line 2 is damaged") as raised:
        read_run(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"updates": 3}', '{"recipe": []}'])
def test_a_damaged_summary(content, write_run):
    folder = write_run("damaged")
    (folder / "summary.json").write_text(content)
    with pytest.raises(SVFError, match=r"summary\.json"):
        read_run(folder)


def graded(index: int, correct: bool | None, sample: int = 0) -> dict:
    return {
        "index": index, "sample": sample, "prompt": f"question {index}", "completion": "7", "reference": "7",
        "extracted": "7", "correct": correct, "score": None, "reason": "equal", "infrastructure": False, "tokens": 4,
        "finished": True,
    }  # fmt: skip


@pytest.fixture
def evaluation(tmp_path):
    def write(records, finished=True):
        (tmp_path / "eval" / "base").mkdir(parents=True)
        settings = {
            "kind": "svf-rl evaluation",
            "runs": {"base/gsm8k": {"task": "gsm8k"}, "a/gsm8k": {"task": "gsm8k"}},
        }
        (tmp_path / "eval" / "settings.json").write_text(json.dumps(settings))
        (tmp_path / "eval" / "base" / "gsm8k.jsonl").write_text(jsonl(records))
        if finished:
            (tmp_path / "eval" / "summary.json").write_text("{}")
        return tmp_path / "eval"

    return write


def test_an_evaluation(evaluation):
    folder = evaluation([graded(i, i < 3) for i in range(4)] + [graded(4, None)])
    assert is_evaluation(folder)
    read = read_evaluation(folder)
    ((result, _),) = read.graded
    assert read.finished
    assert (result.label, result.task, result.items, result.not_scorable) == ("base", "gsm8k", 5, 1)
    assert result.accuracy.value == 0.75
    assert result.accuracy.interval == pytest.approx((0.3006, 0.9544), abs=1e-4)  # Wilson, 3 of 4
    assert (result.tokens, result.cut_off) == (4, 0)


def test_several_samples_an_item_are_averaged_by_item(evaluation):
    folder = evaluation([graded(0, True), graded(0, False, 1), graded(1, True), graded(1, True, 1)], finished=False)
    read = read_evaluation(folder)
    assert not read.finished
    ((result, _),) = read.graded
    assert result.accuracy.value == 0.75
    assert result.items == 2


def test_an_evaluation_without_completions_or_with_a_damaged_line(evaluation, write_run):
    folder = evaluation([])
    with pytest.raises(SVFError, match="no graded completions yet"):
        read_evaluation(folder)
    (folder / "base" / "gsm8k.jsonl").write_text("{}\n" + jsonl([graded(0, True)]))
    with pytest.raises(SVFError, match="line 1 is damaged"):
        read_evaluation(folder)
    assert not is_evaluation(write_run("math"))
