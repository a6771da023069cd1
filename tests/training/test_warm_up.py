"""A warm-up before a run: both in one, as if they were two, and the same when it was cut off in either."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import read_metrics
from launched_run import assert_same
from safetensors.torch import load_file

from svf_rl.errors import Stopped, SVFError
from svf_rl.train import run

SMALL = ["--validation_items", "16", "--test_items", "32", "--max_steps", "4", "--eval_steps", "1", "--save_steps", "1",
         "--save_total_limit", "10", "--per_device_train_batch_size", "16", "--disable_tqdm", "--report_to", "none",
         "--use_vllm", "false", "--use_cpu"]  # fmt: skip
WARM = ["--warm_up_steps", "4"]
RESUME = ["--resume_from_checkpoint", "auto"]
# Its calls: the base model, steps 0 to 4, the saved adapter (1 to 7, the warm-up); step 0, two a step (9 and 10, ...),
# the saved adapter.
REWARD = """
import json, os, signal
from pathlib import Path
from svf_rl.rewards import load_reward
numeric, folder = load_reward("numeric"), Path(__file__).parent
def watched(completions, answer, **columns):
    calls = folder / "calls"
    number = int(calls.read_text()) + 1 if calls.exists() else 1
    calls.write_text(str(number))
    at = folder / f"at{number}"
    if at.exists():
        how = at.read_text()
        at.unlink()
        if how == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            raise RuntimeError("cut off")
    return numeric(completions=completions, answer=answer, **columns)
"""


@pytest.fixture
def watched(tmp_path: Path) -> Callable[..., list[str]]:
    """`watched("stop", 3)`: settings of a recipe whose reward sends SIGTERM, or raises (`"raise"`), in that call."""

    def build(how: str = "", call: int = 0) -> list[str]:
        (tmp_path / "reward.py").write_text(REWARD)
        (tmp_path / "calls").unlink(missing_ok=True)
        if how:
            (tmp_path / f"at{call}").write_text(how)
        return [*SMALL, *WARM, "--rewards", f"[{tmp_path / 'reward.py'}:watched]"]

    return build


def adapter(folder: Path) -> dict[str, Any]:
    return load_file(folder / "adapter_model.safetensors")


def test_a_run_goes_on_from_its_warm_up_to_the_bit(
    watched: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole"
    summary = run("quickstart", [*watched(), "--output_dir", str(whole)])
    printed = capfd.readouterr().out
    # by hand: two runs
    by_hand = [*watched()[: len(SMALL)], *watched()[-2:]]
    first = [*by_hand, "--load_best_model_at_end", "false", "--objective", "next_token"]
    run("quickstart", [*first, "--output_dir", str(tmp_path / "first")])
    run("quickstart", [*by_hand, "--adapter_path", str(tmp_path / "first"), "--output_dir", str(tmp_path / "second")])
    for one, two in ((whole / "warm_up", tmp_path / "first"), (whole, tmp_path / "second")):
        assert (one / "adapter_model.safetensors").read_bytes() == (two / "adapter_model.safetensors").read_bytes()
    start = load_file(whole / "checkpoint-1" / "start_values.safetensors")  # z at step 0, which KL is measured from
    warmed = adapter(whole / "warm_up")
    assert start
    for name, z in start.items():
        assert torch.equal(z, warmed[name.replace(".default.weight", ".weight")])
        assert not torch.equal(z, torch.ones_like(z))
    # what is said of it
    ended = json.loads((whole / "warm_up" / "summary.json").read_text())
    base = next(line["base_accuracy"] for line in read_metrics(whole / "warm_up") if "base_accuracy" in line)
    assert summary is not None
    assert summary.base_accuracy == base == ended["base_accuracy"]
    assert summary.warm_up == {"folder": "warm_up", "updates": 4, "accuracy": ended["accuracy"]}
    assert f"warm-up: test accuracy: {base:.3f} before, {ended['accuracy']:.3f} after" in printed
    assert "warm-up:        4 updates of next-token training before, of 16 right answers each" in printed
    card = (whole / "README.md").read_text()
    assert "Seed 0, 4 steps of next-token training as a warm-up, 4 steps" in card
    assert "KL to the start" in card
    curve = [(line["step"], line["eval_accuracy"]) for line in read_metrics(whole) if "eval_accuracy" in line]
    assert [step for step, _ in curve] == [0, 1, 2, 3, 4]
    kl = [line["kl"] for line in read_metrics(whole) if "kl" in line]
    assert kl[0] == 0
    assert kl[-1] > 0


@pytest.mark.parametrize(
    ("how", "call"),
    [
        ("raise", 5),
        pytest.param("stop", 4, marks=pytest.mark.slow),
        ("raise", 8),
        ("raise", 13),
        pytest.param("stop", 11, marks=pytest.mark.slow),
    ],
    ids=["in the warm-up", "stopped in the warm-up", "between them", "after it", "stopped after it"],
)
def test_cut_off_anywhere_it_is_the_same_run(watched: Any, tmp_path: Path, how: str, call: int) -> None:
    settings = watched()
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run("quickstart", [*settings, "--output_dir", str(whole)])
    with pytest.raises(Stopped if how == "stop" else SVFError, match="stopped by SIGTERM" if how == "stop" else "cut"):
        run("quickstart", [*watched(how, call), "--output_dir", str(cut)])
    if call > 8:  # its checkpoints have all of the warm-up
        (cut / "warm_up").rename(tmp_path / "elsewhere")
    resumed = run("quickstart", [*settings, *RESUME, "--output_dir", str(cut)])
    assert_same(whole, cut)
    assert resumed is not None
    assert resumed.warm_up["updates"] == 4
    if call <= 8:
        assert_same(whole / "warm_up", cut / "warm_up")


def test_a_run_that_is_there_is_neither_replaced_nor_mixed_up(watched: Any, tmp_path: Path) -> None:
    out = ["--output_dir", str(tmp_path / "run")]
    settings = watched("raise", 5)
    with pytest.raises(SVFError, match="cut off"):
        run("quickstart", [*settings, *out])
    with pytest.raises(SVFError, match="warm_up holds a run that has not ended, which would be replaced"):
        run("quickstart", [*settings, *out])
    run("quickstart", [*settings, *out, *RESUME])
    with pytest.raises(SVFError, match="warm_up_steps"):  # its own checkpoints say what it began with
        run("quickstart", [*settings, *out, *RESUME, "--warm_up_steps", "2", "--max_steps", "5"])
    # the earlier run is gone when the warm-up of the new one has begun, and is not resumed in its place
    with pytest.raises(SVFError, match="cut off"):
        run("quickstart", [*watched("raise", 1), *out, "--overwrite_output_dir"])
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.vllm
def test_evolution_strategies_too_with_the_same_engine(tmp_path: Path) -> None:
    settings = [*SMALL[: SMALL.index("--use_vllm")], *WARM, "--objective", "evolution_strategies", "--beta", "0"]
    population = ["--num_generations", "4", "--evolution_sigma", "0.3", "--load_best_model_at_end", "false"]
    summary = run("quickstart", [*settings, *population, "--output_dir", str(tmp_path / "run")])
    assert summary is not None
    assert summary.updates == 4
    assert summary.warm_up["accuracy"] > summary.base_accuracy
    warmed, after = adapter(tmp_path / "run" / "warm_up"), adapter(tmp_path / "run")
    assert any(not torch.equal(warmed[name], after[name]) for name in warmed)
