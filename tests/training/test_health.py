"""A run that learns nothing more says so once; a bonus keeps its entropy."""

import logging
from types import SimpleNamespace

import pytest
import torch

from svf_rl.training.health import PATIENCE, HealthWarnings

ARGS = SimpleNamespace(num_generations=4, advantage="leave_one_out")


def _log(
    caplog: pytest.LogCaptureFixture, *lines: dict, every: int = 1, cut: int | None = None, args: object = ARGS
) -> list[str]:
    """What is said of the lines, one after `every` update, of a run that was cut off after `cut` lines."""
    watch = HealthWarnings()
    with caplog.at_level(logging.WARNING):
        for number, line in enumerate(lines):
            state = SimpleNamespace(is_world_process_zero=True, global_step=every * number)
            if number in (0, cut):
                kept, watch = watch.state()["attributes"], HealthWarnings()
                vars(watch).update(kept)
                watch.on_train_begin(args, state, None)
            state.global_step += every
            watch.on_log(args, state, None, {"loss": 0.0, **line})
    return [record.getMessage() for record in caplog.records]


def test_updates_without_mixed_rewards_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    same, mixed = {"frac_reward_zero_std": 1.0, "reward": 0.0}, {"frac_reward_zero_std": 0.9, "reward": 0.1}
    assert _log(caplog, *[same] * (PATIENCE - 1), mixed, *[same] * (PATIENCE - 1)) == []
    (said,) = _log(caplog, *[same] * (3 * PATIENCE))
    assert f"in {PATIENCE} updates the completions of each prompt had all the same reward" in said


@pytest.mark.parametrize(
    ("advantage", "completions"),
    [("batch_mean", 4), ("none", 4), ("batch_mean", 1), ("none", 1), ("leave_one_out", 1)],  # the last: of evolution
)
def test_baselines_of_the_whole_batch_compare_prompts_with_one_another(
    advantage: str, completions: int, caplog: pytest.LogCaptureFixture
) -> None:
    args, updates = SimpleNamespace(num_generations=completions, advantage=advantage), 2 * PATIENCE
    assert _log(caplog, *[{"frac_reward_zero_std": 1.0, "reward": 0.5, "reward_std": 0.5}] * updates, args=args) == []
    assert _log(caplog, *[{"cross_entropy": 1.0}] * updates, args=args) == []  # next-token training
    same = {"frac_reward_zero_std": 1.0, "reward": 0.5, "reward_std": 0.0}
    (said,) = _log(caplog, *[same] * updates, args=args)
    assert f"in {PATIENCE} updates the completions of all prompts had all the same reward" in said


def test_what_is_counted_is_updates_and_not_lines(caplog: pytest.LogCaptureFixture) -> None:
    same, mixed = {"frac_reward_zero_std": 1.0, "reward": 0.0}, {"frac_reward_zero_std": 0.5, "reward": 0.1}
    assert _log(caplog, mixed, same, every=PATIENCE - 1) == []
    (said,) = _log(caplog, mixed, same, every=10)
    assert "in 10 updates the completions" in said


def test_a_run_that_resumes_knows_what_was_before(caplog: pytest.LogCaptureFixture) -> None:
    same, start = {"frac_reward_zero_std": 1.0}, {"entropy": 1.8, "reward": 0.02}
    (unmixed,) = _log(caplog, *[same] * (2 * PATIENCE), cut=PATIENCE - 1)
    assert f"in {PATIENCE} updates" in unmixed
    caplog.clear()
    (collapsed,) = _log(caplog, start, *[{"entropy": 0.1, "reward": 0.02}] * 4, cut=3)
    assert "the entropy fell from 1.8 to 0.1" in collapsed
    caplog.clear()
    (later,) = _log(caplog, start, start, {"entropy": 0.1, "reward": 0.02}, cut=2)
    assert later == collapsed


def test_a_collapse_is_warned_of_where_the_task_is_not_solved(caplog: pytest.LogCaptureFixture) -> None:
    start = {"entropy": 1.8, "reward": 0.02}
    assert _log(caplog, start, {"entropy": 0.1, "reward": 0.9}, {"entropy": 0.3, "reward": 0.02}) == []
    (said,) = _log(caplog, start, {"entropy": 0.1, "reward": 0.02}, {"entropy": 0.05, "reward": 0.02})
    assert "the entropy fell from 1.8 to 0.1 while the reward is 0.02: lower learning_rate" in said


@pytest.mark.parametrize("advantage", ["leave_one_out", "batch_mean"])
@pytest.mark.parametrize("score", [0.0, None])
def test_a_trainer_warns(
    score: float | None, advantage: str, make_trainer, scripted, caplog: pytest.LogCaptureFixture
) -> None:
    def nothing(completions: list, **_: object) -> list[float | None]:
        return [score] * len(completions)

    own = {"reward": nothing, "advantage": advantage, "max_steps": PATIENCE + 1, "logging_steps": 1}
    trainer = make_trainer(generator=scripted(), **own)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert sum("had all the same reward" in record.getMessage() for record in caplog.records) == 1


def _trained(make_trainer, scripted, **settings: object) -> torch.Tensor:
    trainer = make_trainer(generator=scripted(), advantage="none", **settings)
    trainer.train()
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])


def test_a_bonus_is_the_mean_entropy_of_the_step_in_whatever_micro_batches(make_trainer, scripted) -> None:
    plain = _trained(make_trainer, scripted)
    whole = _trained(make_trainer, scripted, entropy_coef=0.5)
    split = _trained(
        make_trainer, scripted, entropy_coef=0.5, per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    assert not torch.equal(plain, whole)
    torch.testing.assert_close(whole, split, rtol=0, atol=1e-6)


def test_a_bonus_alone_raises_the_entropy(make_trainer, scripted) -> None:
    def nothing(completions: list, **_: object) -> list[float]:
        return [0.0] * len(completions)

    trainer = make_trainer(
        generator=scripted(), reward=nothing, entropy_coef=1.0, max_steps=8, learning_rate=1.0, logging_steps=1
    )
    trainer.train()
    entropy = [line["entropy"] for line in trainer.state.log_history if "entropy" in line]
    assert entropy[-1] > entropy[0] + 1e-3
