"""Experts that do not go together, weights that do not fit, folders that are taken: one line, and nothing is left."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fakes import refused_command, save_adapter
from peft import LoraConfig, PeftConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from svf_rl.adaptation import few_shot
from svf_rl.cli import main
from svf_rl.quickstart import model_path
from svf_rl.storage.locks import hold_folder
from svf_rl.svf import SVFConfig

FEW_SHOT = ["few-shot", "quickstart", "--backend", "transformers", "--limit", "6", "--out", "out"]
DISPATCH = ["dispatch", "quickstart", "--backend", "transformers", "--limit", "6", "--out", "out", "--task", "exam"]
SMALL = ["--shots", "2", "--population", "2", "--generations", "2", "--samples", "1", "--max-tokens", "6"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of experts: good ones, and ones that are not what they should be."""
    folder = tmp_path_factory.mktemp("experts")

    def save(name: str, config: PeftConfig, base: Path | None = None) -> None:
        save_adapter(folder / name, config, by=0.05, base=base, dtype="auto")

    save("math", SVFConfig(target_modules="mlp", task_type="CAUSAL_LM"))
    save("attention", SVFConfig(target_modules="attention", task_type="CAUSAL_LM"))
    save("lora", LoraConfig(target_modules=["up_proj"], task_type="CAUSAL_LM"))
    other = AutoModelForCausalLM.from_pretrained(model_path())
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    other.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(model_path()).save_pretrained(folder / "model")
    save("other_base", SVFConfig(target_modules="mlp", task_type="CAUSAL_LM"), folder / "model")
    for name in ("code", "mean", "base", "few-shot", "mix", "my own", "a.b", "torn", "nan", "listed"):
        shutil.copytree(folder / "math", folder / name)
    weights = folder / "torn" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    weights = folder / "nan" / "adapter_model.safetensors"
    with safe_open(weights, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(weights)
    next(tensor for key, tensor in tensors.items() if ".svf_z." in key)[0] = float("nan")
    save_file(tensors, weights, metadata)
    (folder / "listed" / "adapter_config.json").write_text("[]")
    (folder / "empty").mkdir()
    (folder / "file").write_text("here before")
    return folder


@pytest.fixture(autouse=True)
def in_place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs in a folder of its own, with the experts at hand as `x/NAME`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").symlink_to(made)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must be refused; the one line it ends with."""

    return lambda *arguments: refused_command(capsys, *arguments)


def misused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The line of argparse."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


NO_EXPERT = [
    ("nowhere", "nowhere"), ("empty", "adapter_config.json"), ("file", "neither a local folder"), ("torn", "damaged"),
    ("nan", "not finite"), ("listed", "adapter_config.json is damaged"),
]  # fmt: skip
APART = [("attention", "different targets"), ("other_base", "different base weights"), ("lora", "LORA")]


@pytest.mark.parametrize(("name", "says"), [*NO_EXPERT, *APART])
def test_experts_that_cannot_be_merged(refused: Callable[..., str], name: str, says: str) -> None:
    assert says in refused("merge", "quickstart", "--expert", "x/math", "--expert", f"x/{name}", "--out", "out")


@pytest.mark.parametrize(("name", "says"), [*APART, ("torn", "damaged"), ("listed", "adapter_config.json is damaged")])
def test_experts_that_cannot_be_held_together(refused: Callable[..., str], name: str, says: str) -> None:
    assert says in refused(*FEW_SHOT, "--task", "exam", "--expert", "x/math", "--expert", f"x/{name}")
    assert says in refused(*DISPATCH, "--expert", "math=x/math", "--expert", f"code=x/{name}")


@pytest.mark.parametrize(("name", "says"), NO_EXPERT)
def test_what_is_no_expert_is_neither_listed_nor_published(refused: Callable[..., str], name: str, says: str) -> None:
    assert says in refused("experts", "x/math", f"x/{name}")
    assert says in refused("push", f"x/{name}", "./out", "--base-model", "someone/model")


def test_an_expert_is_merged_once(refused: Callable[..., str]) -> None:
    assert "named twice" in refused("merge", "quickstart", "--expert", "x/math", "--expert", "x/math", "--out", "out")


def test_a_base_model_that_the_hub_cannot_have(refused: Callable[..., str]) -> None:
    assert "is not a valid name on the Hub" in refused("push", "x/math", "./out", "--base-model", "not a name!")


@pytest.mark.parametrize("command", ["merge", "few-shot", "dispatch"])
def test_an_expert_of_another_base_model(refused: Callable[..., str], command: str) -> None:
    call = {
        "merge": ["merge", "quickstart", "--out", "out", "--expert", "x/other_base"],
        "few-shot": [*FEW_SHOT, "--task", "exam", "--expert", "x/other_base"],
        "dispatch": [*DISPATCH, "--expert", "math=x/other_base"],
    }[command]
    assert "other base weights" in refused(*call)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--weights", "0.5"], "1 weights for 2 experts"),
        (["--weights", "0.5,0.6", "--normalized"], "must sum to 1"),
        (["--weights", "inf,0"], "finite"),
        (["--weights", "nan,0"], "finite"),
        (["--weights", "1,0;0"], "one an expert"),
        (["--weights", "1,0;0,1", "--scope", "layer"], "needs (3, 2)"),
        (["--weights", "1,0;0,1;1,0"], "needs (1, 2)"),
        (["--max-shard-size", "lots"], "5GB"),
    ],
)
def test_weights_that_do_not_fit(refused: Callable[..., str], options: list[str], says: str) -> None:
    assert says in refused("merge", "quickstart", "--expert", "x/math", "--expert", "x/code", "--out", "out", *options)


def test_weights_that_are_no_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert "0.5,x" in misused(capsys, "merge", "quickstart", "--expert", "x/math", "--out", "o", "--weights", "0.5,x")


@pytest.mark.parametrize(
    ("experts", "says"),
    [
        (["x/base"], "base"), (["x/mean"], "mean"), (["x/few-shot"], "few-shot"), (["x/mix"], "cannot be called mix"),
        (["a/b=x/math"], "not a valid name of a file"), (["=x/math"], "math=runs/math"), (["math="], "math=runs/math"),
        (["x/math", "x/math"], "two experts are called math"), (["a.b=x/math", "a_b=x/code"], "a.b"),
    ],
)  # fmt: skip
def test_names_that_experts_cannot_have(refused: Callable[..., str], experts: list[str], says: str) -> None:
    given = [part for expert in experts for part in ("--expert", expert)]
    assert says in refused(*FEW_SHOT, "--task", "exam", *given)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--shots", "0"], "shots"), (["--shots", "-1"], "shots"), (["--shots", "9999"], "fewer than the 9999 shots"),
        (["--population", "1"], "population"), (["--generations", "0"], "generations"),
        (["--samples", "-1"], "samples"),
        (["--samples", "0"], "samples"), (["--greedy-weight", "nan"], "weights"), (["--seed", "-1"], "seed"),
        (["--limit", "0"], "--limit"), (["--max-tokens", "0"], "--max-tokens"), (["--task", "exams"], "unknown task"),
        (["--out", "x/file"], "another --out"), (["--out", "x/file/below"], "another --out"),
        (["--out", "x/math"], "new or empty folder"),
    ],
)  # fmt: skip
def test_a_search_that_cannot_be(refused: Callable[..., str], options: list[str], says: str) -> None:
    assert says in refused(*FEW_SHOT, "--task", "exam", "--expert", "x/math", *options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--expert", "cooking=x/math"], "code, math, reasoning"), (["--expert", "other=x/math"], "base model"),
        (["--expert", "math=x/math", "--expert", "math=x/code"], "two experts"), (["--expert", "x/math"], "math=runs"),
        ([], "no class has an expert"), (["--expert", "math=x/math", "--classifier", "x/lora"], "LORA"),
        (["--expert", "math=x/math", "--classifier", "x/other_base"], "other base weights"),
        (["--expert", "math=x/math", "--classifier-tokens", "0"], "at least 1"),
        (["--expert", "math=x/math", "--out", "x/file"], "another --out"),
        (["--expert", "math=x/math", "--out", "x/math"], "empty folder"),
    ],
)  # fmt: skip
def test_a_dispatch_that_cannot_be(refused: Callable[..., str], options: list[str], says: str) -> None:
    assert says in refused(*DISPATCH, *options)


@pytest.mark.parametrize(("name", "text"), [("nowhere.txt", None), ("p.txt", b"\n \n"), ("p.txt", b"\xff\xfe")])
def test_prompts_that_cannot_be_read(refused: Callable[..., str], name: str, text: bytes | None) -> None:
    if text is not None:
        Path(name).write_bytes(text)
    assert name in refused(*DISPATCH[:-2], "--prompts", name, "--expert", "math=x/math")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"experts": ["x/math", "x/other_base"]}, "different base weights"),
        ({"experts": ["x/math", "x/attention"]}, "different targets"), ({"experts": ["x/lora"]}, "LORA"),
        ({"experts": ["x/math", "./x/nowhere"]}, "does not exist"), ({"experts": ["x/math", "x/math"]}, "twice"),
        ({"experts": None}, "needs experts"), ({"experts": [1]}, "list of strings"),
        ({"experts": ["x/math"], "alpha_scope": "galaxy"}, "global or layer or matrix"),
        ({"experts": ["x/math"], "adapter": "svf"}, "adapter: combination"),
    ],
)  # fmt: skip
def test_a_combination_that_cannot_be_trained(
    refused: Callable[..., str], repository: Path, changes: dict[str, object], says: str
) -> None:
    values = yaml.safe_load((repository / "recipes/quickstart.yaml").read_text())
    Path("recipe.yaml").write_text(yaml.safe_dump({**values, "use_vllm": False, "adapter": "combination", **changes}))
    assert says in refused("train", "recipe.yaml", "--dry-run")


@pytest.mark.parametrize("what", ["nowhere", "empty", "file", "lora", "no_metrics"])
def test_a_report_of_what_is_no_run(refused: Callable[..., str], what: str) -> None:
    Path("no_metrics").mkdir()
    (Path("no_metrics") / "metrics.jsonl").write_text("hello\n")
    assert what in refused("report", what if what == "no_metrics" else f"x/{what}")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seedz": [0]}, "seeds"), ({"seeds": ["a"]}, "list of integers"), ({"seeds": [0, 0]}, "different numbers"),
        ({"classes": {"math": "cooking"}}, "cooking"), ({"classes": {"cooking": "math"}}, "unknown class"),
        ({"experts": {"math": {"recipe": "nope.yaml"}}}, "nope.yaml"), ({"model": None}, "model"),
        ({"unseen": {"exam": {"task": "exams"}}}, "unknown task"), ({"few_shot": {"shots": 0}}, "shots"),
        ({"evaluation": {"enforce_egar": True}}, "enforce_eager"),
    ],
)  # fmt: skip
def test_a_comparison_that_cannot_be(
    refused: Callable[..., str], repository: Path, changes: dict[str, object], says: str
) -> None:
    values = yaml.safe_load((repository / "recipes/reproduce/quickstart.yaml").read_text())
    Path("comparison.yaml").write_text(yaml.safe_dump({**values, **changes}))
    assert says in refused("reproduce", "comparison.yaml", "--dry-run", "--out", "out")


def test_a_folder_of_another_search_is_left_as_it_is(refused: Callable[..., str]) -> None:
    call = [*FEW_SHOT, *SMALL, "--task", "exam", "--expert", "x/my own", "--expert", "x/a.b"]
    assert main(call) == 0
    before = (Path("out") / "search.json").read_bytes()
    assert "2 there, 3 here" in refused(*call, "--shots", "3")
    assert "experts" in refused(*call, "--expert", "x/code")
    assert (Path("out") / "search.json").read_bytes() == before


def test_a_folder_that_another_call_is_writing(refused: Callable[..., str]) -> None:
    with hold_folder(Path("out")):
        assert "another process" in refused(*FEW_SHOT, *SMALL, "--task", "exam", "--expert", "x/math")


def test_an_interrupted_search_ends_with_the_same_weights(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = [*FEW_SHOT, *SMALL, "--task", "exam", "--expert", "x/math", "--expert", "x/code"]
    assert main([*call, "--out", "whole"]) == 0
    write = few_shot.write_json

    def interrupted(*arguments: Any) -> None:
        write(*arguments)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(few_shot, "write_json", interrupted)
        assert main(call) == 1
    assert "resumes from here" in capsys.readouterr().err
    assert len(json.loads((Path("out") / "search.json").read_text())["history"]) == 1
    assert main(call) == 0
    found = [json.loads((Path(out) / "summary.json").read_text())["few_shot"]["alpha"] for out in ("whole", "out")]
    assert found[0] == found[1]
