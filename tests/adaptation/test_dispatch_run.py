"""`svf-rl dispatch` from arguments to files, with the transformers backend, which starts at once."""

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import save_adapter
from peft import LoraConfig

from svf_rl.adaptation.arguments import DispatchArguments
from svf_rl.adaptation.dispatch_run import run_dispatch
from svf_rl.errors import SVFError
from svf_rl.evaluation.arguments import EvaluationArguments


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two saved experts and an adapter of another method."""
    root = tmp_path_factory.mktemp("experts")
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    configs = {"sums": None, "programs": None, "lora": lora}
    return {
        name: save_adapter(root / name, config, seed, by=0.1) for seed, (name, config) in enumerate(configs.items())
    }


def _arguments(folders: dict[str, str], out: Path, task: str = "exam", **options: Any) -> DispatchArguments:
    reward = options.pop("reward", None)
    evaluation = EvaluationArguments(
        "quickstart", [task], limit=9, max_tokens=16, backend="transformers", out=str(out), reward=reward
    )
    experts = options.pop("experts", {"math": folders["sums"], "code": folders["programs"]})
    return DispatchArguments(evaluation, experts, **{"classifier_tokens": 16, **options})


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_items_of_a_task_are_graded_and_compared_with_the_base_model(
    folders: dict[str, str], tmp_path: Path
) -> None:
    report = run_dispatch(_arguments(folders, tmp_path / "out"))
    lines = _lines(tmp_path / "out/dispatch/exam.jsonl")
    base = _lines(tmp_path / "out/base/exam.jsonl")
    assert [line["index"] for line in lines] == [line["index"] for line in base] == list(range(9))
    for line, plain in zip(lines, base, strict=True):
        assert line["expert"] == {"math": "sums", "code": "programs"}.get(line["class"], "base")
        if line["expert"] == "base":
            assert line["completion"] == plain["completion"]
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    accuracy = sum(line["correct"] for line in lines) / 9
    assert [result["label"] for result in summary["results"]] == ["base", "dispatch"]
    assert summary["results"][1]["accuracy"]["value"] == pytest.approx(accuracy)
    assert sum(share["prompts"] for share in summary["classes"]) == 9
    assert all(share["accuracy"].keys() == {"value", "interval"} for share in summary["classes"])
    assert summary["second_pass"]["syncs"] == len({line["expert"] for line in lines} - {"base"})
    text = str(report)
    assert all(word in text for word in ("dispatch", "first (classes)", "weight syncs", "sums"))


def test_a_second_call_takes_the_base_models_answers_and_other_settings_are_refused(
    folders: dict[str, str], tmp_path: Path
) -> None:
    first = run_dispatch(_arguments(folders, tmp_path / "out"))
    again = run_dispatch(_arguments(folders, tmp_path / "out"))
    assert [result.reused for result in again.results] == [9, 0]
    assert [r.accuracy for r in again.results] == [r.accuracy for r in first.results]
    with pytest.raises(SVFError, match=r"other settings \(experts\.code: "):
        run_dispatch(_arguments(folders, tmp_path / "out", experts={"math": folders["programs"]}))


def test_prompts_of_a_file_are_answered_by_a_trained_classifiers_choice(
    folders: dict[str, str], tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Tom has 6 eggs, sells 4. How many?\nWrite f(x): add 2.\nTell me a story about cats.\n")
    arguments = _arguments(
        folders, tmp_path / "out", prompts=str(prompts), classifier=folders["sums"], method="loglikelihood"
    )
    report = run_dispatch(arguments)
    lines = _lines(tmp_path / "out/dispatch/prompts.jsonl")
    assert [line["prompt"].count("eggs") for line in lines] == [1, 0, 0]
    assert all(line["correct"] is None and line["completion"] for line in lines)
    assert all(line["class"] == max(line["classification"], key=line["classification"].get) for line in lines)
    assert report.results == []
    assert not (tmp_path / "out/base").exists()
    prompts.write_text("Name a colour.\n")
    with pytest.raises(SVFError, match=r"made with other settings \(prompts"):
        run_dispatch(arguments)
    assert _lines(tmp_path / "out/dispatch/prompts.jsonl") == lines


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": {}}, "no class has an expert"),
        ({"experts": {"sports": "x"}}, "unknown class 'sports'"),
        ({"experts": {"math": "nowhere/to/be/found"}}, "neither a local folder nor an adapter"),
        ({"experts": {"math": "LORA"}}, "svf|SVF"),
        ({"classifier_tokens": 0}, "--classifier-tokens must be at least 1"),
        ({"classifier": "nowhere/to/be/found"}, "neither a local folder nor an adapter"),
        ({"prompts": "nowhere.txt"}, "cannot be read"),
        ({"prompts": "nowhere.txt", "reward": "numeric"}, "not graded"),
        ({"task": "nothing"}, "unknown task 'nothing'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    folders: dict[str, str], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    if options.get("experts") == {"math": "LORA"}:
        options = {"experts": {"math": folders["lora"]}}
    with pytest.raises(SVFError, match=message) as error:
        run_dispatch(_arguments(folders, tmp_path / "out", **options))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
