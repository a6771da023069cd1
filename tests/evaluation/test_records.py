"""The files of an evaluation: what survives a kill, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from svf_rl.errors import SVFError
from svf_rl.evaluation.folder import ResultFolder, choose_folder
from svf_rl.evaluation.grading import Grader
from svf_rl.evaluation.records import Answers, Record, append_records, mend, read_records
from svf_rl.evaluation.summary import compare, summarize
from svf_rl.rewards.verified import parse_reference


def record(index: int, correct: bool | None = True, sample: int = 0, **values: Any) -> Record:
    settings: dict[str, Any] = {
        "prompt": "2+2?", "completion": "4", "reference": "4", "extracted": "4", "score": None, "reason": "equal",
        "infrastructure": False, "tokens": 3, "finished": True,
    }  # fmt: skip
    return Record(index=index, sample=sample, correct=correct, **{**settings, **values})


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    records = [record(0), record(1, None, completion="tab\t, line\n, \u2028, 数, \udc80", reference={"tests": ["a"]})]
    append_records(tmp_path / "r.jsonl", records)
    assert read_records(tmp_path / "r.jsonl") == records
    assert len((tmp_path / "r.jsonl").read_bytes().splitlines()) == 2


def test_a_reference_that_is_a_json_object_is_written_as_one(tmp_path: Path) -> None:
    append_records(tmp_path / "r.jsonl", [record(0, reference=parse_reference('{"tests": ["a"]}'))])
    assert read_records(tmp_path / "r.jsonl")[0].reference == {"tests": ["a"]}


def test_items_that_agree_have_the_interval_of_as_many_single_answers() -> None:
    records = [record(index, sample=sample) for index in range(8) for sample in range(4)]
    several = summarize("base", "task", "accuracy", Answers(records)).accuracy
    single = summarize("base", "task", "accuracy", Answers([r for r in records if r.sample == 0])).accuracy
    assert several is not None
    assert several == single
    assert several.low < 0.7


@pytest.mark.parametrize("torn", range(1, 200, 7))
def test_a_torn_last_line_does_not_count_and_is_cut_off(tmp_path: Path, torn: int) -> None:
    path = tmp_path / "r.jsonl"
    append_records(path, [record(0), record(1)])
    whole = path.read_bytes()
    append_records(path, [record(2)])
    path.write_bytes(path.read_bytes()[:-torn])
    assert mend(path) == [record(0), record(1)]
    assert path.read_bytes() == whole


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(record(0).line() + "{broken\n" + record(1).line())
    with pytest.raises(SVFError, match="line 2 is damaged"):
        mend(path)


def test_a_completion_whose_check_failed_by_itself_is_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    append_records(path, [record(0), record(1, None, infrastructure=True), record(2, None)])
    assert [r.index for r in mend(path)] == [0, 2]
    assert [r.index for r in read_records(path)] == [0, 2]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(SVFError, match="not of an evaluation"):
        ResultFolder(tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_damaged_settings_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"kind"')
    with pytest.raises(SVFError, match="damaged"):
        ResultFolder(tmp_path, {})


def test_other_settings_are_refused_and_named_and_more_runs_are_added(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = {"model": "a", "model_fingerprint": "1", "temperature": 0.0}
    with ResultFolder(out, {"base/gsm8k": first}).writing():
        append_records(out / "base" / "gsm8k.jsonl", [record(0)])
    with pytest.raises(SVFError, match=r"base/gsm8k, .* other settings \(temperature: 0\.0 there, 0\.8 here\)"):
        ResultFolder(out, {"base/gsm8k": {**first, "temperature": 0.8}})
    with ResultFolder(out, {"base/gsm8k": {**first, "model": "moved"}, "base/math": first}).writing():
        pass
    assert sorted(json.loads((out / "settings.json").read_text())["runs"]) == ["base/gsm8k", "base/math"]


def test_without_out_each_setting_has_a_folder_of_its_own_and_resumes_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for temperature in (0.0, 0.8, 0.5, 0.8, 0.0):
        with choose_folder(None, "runs/eval-a", {"base/gsm8k": {"temperature": temperature}}).writing() as _:
            pass
    made = {path.name: json.loads((path / "settings.json").read_text())["runs"] for path in Path("runs").iterdir()}
    assert {name: runs["base/gsm8k"]["temperature"] for name, runs in made.items()} == {
        "eval-a": 0.0, "eval-a-2": 0.8, "eval-a-3": 0.5,
    }  # fmt: skip
    assert "these go to runs/eval-a-3\n" in capsys.readouterr().err
    Path("runs/eval-a/settings.json").write_text("torn")  # which is another matter
    with pytest.raises(SVFError, match="damaged"):
        choose_folder(None, "runs/eval-a", {"base/gsm8k": {"temperature": 0.8}})


def test_two_processes_do_not_write_into_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with ResultFolder(out, {}).writing(), pytest.raises(SVFError, match="another process is writing"):
        ResultFolder(out, {}).writing().__enter__()


def test_an_evaluation_that_comes_second_leaves_the_new_folder_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first, second = ResultFolder(out, {"base/gsm8k": {}}), ResultFolder(out, {"base/gsm8k": {}})
    with first.writing():
        with monkeypatch.context() as patch:  # neither had found it when it looked
            patch.setattr(Path, "exists", lambda path: path != out)
            with pytest.raises(SVFError, match="another process"), second.writing():
                pass
        assert (out / "settings.json").is_file()


def test_a_bad_end_leaves_what_another_evaluation_has_put_beside(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path / "new" / "a", {}).writing()
    folder.__enter__()
    append_records(tmp_path / "new" / "b.jsonl", [record(0)])
    assert not folder.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["b.jsonl"]


@pytest.mark.parametrize("place", ["/proc/nowhere", "x" * 300])
def test_a_place_that_takes_no_folder_is_one_line(place: str, tmp_path: Path) -> None:
    with pytest.raises(SVFError, match=r"cannot write .*: "), ResultFolder(tmp_path / place, {}).writing():
        pass


@pytest.mark.parametrize("graded", [False, True])
def test_a_bad_end_removes_the_folder_unless_something_was_graded(tmp_path: Path, graded: bool) -> None:
    out = tmp_path / "new" / "out"

    def interrupted() -> None:
        with ResultFolder(out, {"base/gsm8k": {}}).writing():
            if graded:
                append_records(out / "base" / "gsm8k.jsonl", [record(0)])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert out.exists() == graded
    assert (tmp_path / "new").exists() == graded


def test_what_is_not_scorable_is_shown_and_left_out_of_the_accuracy() -> None:
    result = summarize("base", "t", "accuracy", Answers([record(0), record(1, False), record(2, None)], 1.0, 0), [1])
    assert result.accuracy.value == 0.5
    assert (result.items, result.not_scorable) == (3, 1)


def test_nothing_scorable_gives_no_figure() -> None:
    result = summarize("base", "t", "accuracy", Answers([record(0, None)], 1.0, 0), [1])
    assert result.accuracy is None
    assert result.to_dict()["accuracy"] == {"value": None, "interval": None}


def test_tokens_and_cut_off_count_every_completion() -> None:
    records = [record(0, tokens=10), record(1, None, tokens=20, finished=False)]
    result = summarize("base", "t", "accuracy", Answers(records, 1.0, 0), [1])
    assert (result.tokens, result.cut_off) == (15.0, 0.5)


def test_with_several_samples_the_accuracy_is_pass_at_1() -> None:
    """Items with 1 of 2, 0 of 2 and, one sample without a verdict, 1 of 1."""
    marks = {(0, 0): True, (0, 1): False, (1, 0): False, (1, 1): False, (2, 0): True, (2, 1): None}
    records = [record(index, mark, sample) for (index, sample), mark in marks.items()]
    result = summarize("base", "t", "pass_at_k", Answers(records, 1.0, 0), [1, 2])
    assert result.accuracy.value == result.pass_at_k[1].value == pytest.approx(0.5)
    assert result.pass_at_k[2].value == pytest.approx(0.5)  # the item with one verdict is left out
    assert (result.items, result.completions, result.not_scorable) == (3, 6, 1)


def test_the_comparison_pairs_items_and_leaves_out_those_without_a_verdict() -> None:
    base = [record(0, False), record(1, True), record(2, True), record(3, None), record(4, False)]
    other = [record(0, True), record(1, False), record(2, True), record(3, True), record(4, True)]
    result = compare(base, other)
    assert (result.items, result.gained, result.lost, result.p_value) == (4, 2, 1, 1.0)


def test_the_comparison_of_several_samples_goes_by_the_share_of_right_ones() -> None:
    base = [record(0, True, 0), record(0, False, 1), record(1, True, 0), record(1, True, 1)]
    other = [record(0, True, 0), record(0, True, 1), record(1, True, 0), record(1, None, 1)]
    result = compare(base, other)
    assert (result.gained, result.lost) == (1, 0)


def test_a_reward_of_a_file_is_another_one_when_the_file_changes(tmp_path: Path) -> None:
    described = []
    for folder, body in (("a", "return [1.0]"), ("b", "return [0.0]"), ("c", "return [1.0]")):
        path = tmp_path / folder / "mine.py"
        path.parent.mkdir()
        path.write_text(f"def score(completions, **_):\n    {body}\n")
        described.append(Grader(f"{path}:score", 0.25).describe())
    assert described[0] == described[2] != described[1]
    assert Grader("numeric", 0.25).describe() == {"name": "numeric"}
