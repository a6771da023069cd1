"""Training is killed at random moments and goes on each time: the run comes out as if nothing had happened."""

import random
import time
from pathlib import Path

import pytest
from fakes import read_metrics
from launched_run import LaunchedRun, assert_same

KILLS, UPDATES, EVERY = 20, 120, 5
RUN = [
    "--max_steps", str(UPDATES), "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2",
    "--steps_per_generation", "4", "--max_completion_length", "24", "--train_items", "64", "--eval_steps", str(EVERY),
    "--save_steps", str(EVERY), "--validation_items", "16", "--test_items", "32", "--log_completions",
    "--num_completions_to_print", "1", "--vllm_max_model_length", "128",
]  # fmt: skip
# Two of its moments are at the very end, after which there is nothing left to interrupt.
MOMENTS = ["start"] * 3 + ["rollout or update"] * 7 + ["evaluation"] * 3 + ["saving"] * 5
END = ["end"] * 2


WITH_TOOLS = [
    *("--model_name_or_path", "quickstart-tools", "--skill", "tools", "--max_completion_length", "64"),
    *("--tools", "svf_rl.quickstart.tool_skill:calc"),
]


def come_to(run: LaunchedRun, moment: str, draw: random.Random) -> str:
    """Wait for such a moment, and say when exactly it is."""
    if moment == "start":
        time.sleep(delay := draw.uniform(1, 20))
        return f"{delay:.1f} s after the start"
    if not run.wait_for(run.trains):
        assert moment == "end", run.said()[-3000:]
        assert "nothing is left to do" in run.said(), run.said()[-3000:]
        return "all was written before the last kill"
    first = run.update()
    if moment == "end":
        assert run.wait_for(lambda: run.update() >= UPDATES), run.said()[-3000:]
        time.sleep(delay := draw.uniform(0, 0.6))
        adapter = (run.output / "adapter_model.safetensors").exists()
        return f"{delay:.2f} s after the last update, the adapter {'' if adapter else 'not '}written"
    if moment == "saving":
        for _ in range(draw.randint(0, 1)):  # not always the first
            run.wait_for(run.writes)
            run.wait_for(lambda: not run.writes())
        run.wait_for(run.writes)
        time.sleep(delay := draw.uniform(0, 0.04))
        left = [path.name for path in run.output.glob(".checkpoint-*")]
        return f"{delay:.3f} s into it, {left[0] if left else 'just over'}"
    until = first + draw.randint(0, 8)
    if moment == "evaluation":  # the update's line is there, that of the evaluation after it is not
        until = (first // EVERY + 1) * EVERY
    assert run.wait_for(lambda: run.update() >= until), run.said()[-3000:]
    time.sleep(delay := draw.uniform(0, 0.1 if moment == "evaluation" else 0.8))
    return f"{delay:.2f} s after update {until}"


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("config", ["cpu", pytest.param("cpu_ddp", marks=pytest.mark.distributed)])
def test_killed_at_random_moments(config: str, tmp_path: Path) -> None:
    whole = LaunchedRun(config, tmp_path / "whole", tmp_path / "whole.log", RUN)
    assert whole.process.wait() == 0, whole.said()[-3000:]
    draw, hit = random.Random(f"{config} 0"), []
    moments = [*draw.sample(MOMENTS, len(MOMENTS)), *END]
    assert len(moments) == KILLS
    for number, moment in enumerate(moments):
        run = LaunchedRun(config, tmp_path / "killed", tmp_path / f"{number}.log", RUN)
        when = come_to(run, moment, draw)
        assert moment == "end" or not run.ended(), run.said()[-3000:]
        run.kill()
        hit.append(f"{number + 1}: {moment}, {when}; it had come to update {run.update()}")
        print(hit[-1], flush=True)
    last = LaunchedRun(config, tmp_path / "killed", tmp_path / "last.log", RUN)
    assert last.process.wait() == 0, last.said()[-3000:]
    assert_same(tmp_path / "whole", tmp_path / "killed")
    assert any(".partial" in line for line in hit)  # in the middle of writing, too
    assert not list((tmp_path / "killed").glob(".checkpoint-*"))


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(1800)
def test_killed_in_the_middle_of_episodes(tmp_path: Path) -> None:
    updates = 20
    settings = ["--max_steps", str(updates), *RUN[2:], *WITH_TOOLS]
    whole = LaunchedRun("cpu", tmp_path / "whole", tmp_path / "whole.log", settings)
    assert whole.process.wait() == 0, whole.said()[-3000:]
    for number, until in enumerate((3, 9, 14)):
        run = LaunchedRun("cpu", tmp_path / "killed", tmp_path / f"{number}.log", settings)
        assert run.wait_for(lambda run=run, until=until: run.update() >= until), run.said()[-3000:]
        time.sleep(random.Random(number).uniform(0, 0.8))
        assert not run.ended()
        run.kill()
    last = LaunchedRun("cpu", tmp_path / "killed", tmp_path / "last.log", settings)
    assert last.process.wait() == 0, last.said()[-3000:]
    assert_same(tmp_path / "whole", tmp_path / "killed")
    called = [line["tools/call_frequency"] for line in read_metrics(tmp_path / "killed") if "reward" in line]
    assert len(called) == updates // 2  # two steps of each generation
    assert min(called) > 0
