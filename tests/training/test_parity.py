"""One update of the trainer against the same update written densely and independently (`dense_reference`)."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from datasets import Dataset
from dense_reference import dense_gradients
from fakes import FakeGenerator
from torch import Tensor
from transformers import TrainerCallback

from svf_rl.generation import Completion
from svf_rl.losses.objective import compute_advantages
from svf_rl.svf import SVFConfig

Make = Callable[..., Any]
Z = Callable[[Any], dict[str, Tensor]]


def _gradients(trainer: Any, z_of: Z) -> dict[str, Tensor]:
    """Train one update of SGD with learning rate 0.1 and read the gradient from the step."""
    before = z_of(trainer)
    trainer.train()
    return {name: (before[name] - after).double() / 0.1 for name, after in z_of(trainer).items()}


def _assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    assert actual.keys() == expected.keys()
    size = max(g.abs().max() for g in expected.values())
    assert size > 1e-3
    for name, gradient in expected.items():
        assert (actual[name] - gradient).abs().max() < tolerance * size, name


def _rewards(samples: Any) -> list[float]:
    return [1.0 if sum(completion) % 2 else -1.0 for _, completion in samples]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_reference_implementations_update(
    make_trainer: Make, tiny_llama: Make, scripted: Make, z_of: Z, tied: bool
) -> None:
    """Sigmoid, renormalised, one greedy completion a prompt, reward ±1, no baseline, token sum, Adam 2e-3, clip 1e-3:
    `p` agrees to 1e-4, of steps of 2e-3."""
    generator = scripted()
    trainer = make_trainer(
        model=tiny_llama(tied), generator=generator, num_generations=1, temperature=0.0, optim="adamw_torch",
        learning_rate=2e-3, max_grad_norm=1e-3, per_device_train_batch_size=4, gradient_accumulation_steps=4,
        peft_config=SVFConfig(parameterization="sigmoid", renormalize=True, init="random", task_type="CAUSAL_LM"),
    )  # fmt: skip
    p = z_of(trainer)
    assert all(abs(v.mean() - 0.1) < 0.01 and 0.005 < v.std() < 0.015 for v in p.values())
    trainer.train()
    trained = z_of(trainer)

    assert len(generator.samples) == 16
    assert generator.requests[0].temperature == 0
    gradients, _, _ = dense_gradients(
        tiny_llama(tied).double(), p, generator.samples, _rewards(generator.samples), sigmoid=2.0, renormalize=True
    )
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    leaves = {n: v.double().requires_grad_() for n, v in p.items()}
    for name, leaf in leaves.items():
        leaf.grad = gradients[name] * min(1.0, 1e-3 / norm.item())
    torch.optim.Adam(leaves.values(), lr=2e-3).step()
    for name, leaf in leaves.items():
        assert (trained[name] - p[name]).abs().max() > 1e-3
        assert (trained[name] - leaf).abs().max() < 1e-4, name


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("parameterization", ["direct", "sigmoid"])
def test_the_gradient_of_plain_reinforce(
    make_trainer: Make, tiny_llama: Make, scripted: Make, z_of: Z, parameterization: str, reduction: str
) -> None:
    generator = scripted()
    config = SVFConfig(parameterization=parameterization, init="random", task_type="CAUSAL_LM")
    trainer = make_trainer(generator=generator, peft_config=config, loss_reduction=reduction)
    z = z_of(trainer)
    actual = _gradients(trainer, z_of)
    expected, _, _ = dense_gradients(
        tiny_llama().double(), z, generator.samples, _rewards(generator.samples), reduction=reduction,
        sigmoid=2.0 if parameterization == "sigmoid" else None,
    )  # fmt: skip
    _assert_same(actual, expected)


@pytest.mark.parametrize("direction", ["policy_ref", "ref_policy"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_exact_divergence_in_the_loss(
    make_trainer: Make, tiny_llama: Make, scripted: Make, z_of: Z, direction: str, reduction: str
) -> None:
    generator = scripted()
    config = SVFConfig(init="random", init_std=0.3, task_type="CAUSAL_LM")
    trainer = make_trainer(
        generator=generator, peft_config=config, beta=0.7, kl_type=direction, loss_reduction=reduction
    )
    z = z_of(trainer)
    actual = _gradients(trainer, z_of)
    expected, _, kl = dense_gradients(
        tiny_llama().double(), z, generator.samples, _rewards(generator.samples), beta=0.7, direction=direction,
        reduction=reduction,
    )  # fmt: skip
    _assert_same(actual, expected)
    logged = next(line["kl"] for line in trainer.state.log_history if "kl" in line)
    assert logged == pytest.approx(torch.cat(kl).mean().item(), rel=1e-5)


@pytest.mark.parametrize("baseline", ["none", "leave_one_out"])
def test_the_divergence_in_the_reward(
    make_trainer: Make, tiny_llama: Make, scripted: Make, z_of: Z, baseline: str
) -> None:
    generator = scripted()
    config = SVFConfig(init="random", init_std=0.3, task_type="CAUSAL_LM")
    trainer = make_trainer(generator=generator, peft_config=config, beta=0.7, kl_placement="reward", advantage=baseline)
    z = z_of(trainer)
    actual = _gradients(trainer, z_of)
    base, rewards = tiny_llama().double(), _rewards(generator.samples)
    _, _, kl = dense_gradients(base, z, generator.samples, rewards)
    penalised = torch.tensor(rewards) - 0.7 * torch.stack([k.sum() for k in kl])
    scores = compute_advantages(penalised, 4, baseline).tolist()
    expected, _, _ = dense_gradients(base, z, generator.samples, scores)
    _assert_same(actual, expected)
    # what is logged as reward is the reward
    assert trainer.state.log_history[0]["reward"] == pytest.approx(sum(rewards) / len(rewards))


def test_at_the_start_the_divergence_is_exactly_zero(make_trainer: Make, scripted: Make) -> None:
    trainer = make_trainer(generator=scripted(), beta=0.7)
    trainer.train()
    assert trainer.state.log_history[0]["kl"] == 0.0


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_estimators_are_formed_from_the_sampled_tokens(
    make_trainer: Make, tiny_llama: Make, scripted: Make, z_of: Z, estimator: str
) -> None:
    generator = scripted()
    config = SVFConfig(init="random", init_std=0.3, task_type="CAUSAL_LM")
    trainer = make_trainer(generator=generator, peft_config=config, beta=0.7, kl_type=estimator)
    z = z_of(trainer)
    trainer.train()
    base, zeros = tiny_llama().double(), [0.0] * len(generator.samples)
    _, logps, _ = dense_gradients(base, z, generator.samples, zeros)
    _, ref_logps, _ = dense_gradients(base, {n: torch.ones_like(v) for n, v in z.items()}, generator.samples, zeros)
    d = torch.cat(ref_logps) - torch.cat(logps)
    expected = {"k1": -d, "k2": d**2 / 2, "k3": d.exp() - 1 - d}[estimator].mean().item()
    assert trainer.state.log_history[0]["kl"] == pytest.approx(expected, rel=1e-4)


def test_rows_without_a_reward_leave_the_update_as_if_they_were_not_there(
    make_trainer: Make, tiny_llama: Make, scripted: Make, z_of: Z
) -> None:
    def partly(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        return [None if sum(ids) % 3 == 0 else 1.0 if sum(ids) % 2 else -1.0 for ids in completion_ids]

    generator = scripted()
    config = SVFConfig(init="random", init_std=0.1, task_type="CAUSAL_LM")
    trainer = make_trainer(
        generator=generator, peft_config=config, reward=partly, beta=0.3, gradient_accumulation_steps=2
    )
    z = z_of(trainer)
    actual = _gradients(trainer, z_of)
    scored = [sample for sample in generator.samples if sum(sample[1]) % 3]
    assert 2 < len(scored) < len(generator.samples)
    expected, _, _ = dense_gradients(tiny_llama().double(), z, scored, _rewards(scored), beta=0.3)
    _assert_same(actual, expected)
    assert trainer.state.log_history[0]["unscorable"] == pytest.approx(1 - len(scored) / len(generator.samples))


def test_truncated_completions_can_be_left_out(make_trainer: Make, tiny_llama: Make, scripted: Make, z_of: Z) -> None:
    generator = scripted(longest=3)
    trainer = make_trainer(generator=generator, mask_truncated_completions=True)
    z = z_of(trainer)
    actual = _gradients(trainer, z_of)
    finished = [sample for sample in generator.samples if sample[1][-1] == generator.eos]
    assert 2 < len(finished) < len(generator.samples)
    expected, _, _ = dense_gradients(tiny_llama().double(), z, finished, _rewards(finished))
    _assert_same(actual, expected)
    share = 1 - len(finished) / len(generator.samples)
    assert trainer.state.log_history[0]["completions/clipped_ratio"] == pytest.approx(share)


def test_a_lone_eos_has_a_gradient(make_trainer: Make, tiny_llama: Make, scripted: Make, z_of: Z) -> None:
    """The token that ends a completion takes part in the likelihood, also when it is all there is."""
    eos = scripted().eos
    generator = FakeGenerator(lambda prompts, *_: [Completion([eos], None, True) for _ in prompts])
    trainer = make_trainer(generator=generator, reward=lambda completion_ids, **_: [1.0] * len(completion_ids))
    z = z_of(trainer)
    actual = _gradients(trainer, z_of)
    assert all(completion == [eos] for _, completion in generator.samples)
    expected, _, _ = dense_gradients(tiny_llama().double(), z, generator.samples, [1.0] * len(generator.samples))
    _assert_same(actual, expected)


def test_a_second_update_from_the_same_completions_is_corrected(
    make_trainer: Make, tiny_llama: Make, scripted: Make, z_of: Z
) -> None:
    """`num_iterations=2`: the importance weights of the second update are those of the moved policy against the
    generator's."""
    base, scored = tiny_llama().double(), {}
    config = SVFConfig(init="random", task_type="CAUSAL_LM")

    def logprobs(prompt: list[int], completion: list[int]) -> list[float]:
        _, (logps,), _ = dense_gradients(base, z[0], [(prompt, completion)], [0.0])
        scored[tuple(prompt), tuple(completion)] = logps
        return logps.tolist()

    generator = scripted(logprobs=logprobs)
    trainer = make_trainer(
        generator=generator, peft_config=config, num_iterations=2, max_steps=2, use_vllm=True,
        callbacks=[_AfterEachUpdate(lambda: z.append(z_of(trainer)))],
    )  # fmt: skip
    z = [z_of(trainer)]
    trainer.train()
    assert len(generator.requests) == 1
    for before, after in pairwise(z):
        expected, _, _ = dense_gradients(
            base, before, generator.samples, _rewards(generator.samples),
            sampled_logps=[scored[tuple(p), tuple(c)] for p, c in generator.samples],
        )  # fmt: skip
        _assert_same({n: (before[n] - after[n]).double() / 0.1 for n in before}, expected, tolerance=5e-4)
    first, second = trainer.state.log_history[:2]
    assert first["sampling/logp_difference"] < 1e-5
    assert first["sampling/importance_weight"] == pytest.approx(1, abs=1e-5)
    assert second["sampling/logp_difference"] > 1e-3


class _AfterEachUpdate(TrainerCallback):
    def __init__(self, action: Callable[[], None]):
        self._action = action

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._action()


@pytest.mark.parametrize(("size", "steps"), [(16, 1), (8, 2), (4, 4), (1, 16)])
def test_micro_batches_and_padding_change_nothing(
    make_trainer: Make, tiny_llama: Make, scripted: Make, z_of: Z, size: int, steps: int
) -> None:
    """The same 16 completions in one batch, padded to the longest, down to one at a time, without any padding."""
    generator = scripted()
    config = SVFConfig(init="random", init_std=0.1, task_type="CAUSAL_LM")
    trainer = make_trainer(
        generator=generator, peft_config=config, per_device_train_batch_size=size, gradient_accumulation_steps=steps,
        beta=0.3, advantage="leave_one_out",
    )  # fmt: skip
    z = z_of(trainer)
    actual = _gradients(trainer, z_of)
    assert len(generator.samples) == 16
    assert len(generator.requests) == 1
    scores = compute_advantages(torch.tensor(_rewards(generator.samples)), 4).tolist()
    expected, _, _ = dense_gradients(tiny_llama().double(), z, generator.samples, scores, beta=0.3)
    _assert_same(actual, expected)


def test_several_generations_for_one_update(make_trainer: Make, tiny_llama: Make, scripted: Make, z_of: Z) -> None:
    """`steps_per_generation` below the accumulation steps: completions in portions, one mean over all of them."""
    generator = scripted()
    trainer = make_trainer(
        generator=generator, per_device_train_batch_size=4, gradient_accumulation_steps=4, steps_per_generation=1
    )
    z = z_of(trainer)
    actual = _gradients(trainer, z_of)
    assert len(generator.requests) == 4
    assert len({tuple(c) for _, c in generator.samples}) > 12  # each portion has seeds of its own
    expected, _, _ = dense_gradients(tiny_llama().double(), z, generator.samples, _rewards(generator.samples))
    _assert_same(actual, expected)


def test_a_short_update_at_the_end_of_an_epoch_is_a_mean_as_well(make_trainer: Make, scripted: Make) -> None:
    rows = Dataset.from_list([{"prompt": f"How many? {number}"} for number in range(3)])
    trainer = make_trainer(
        generator=scripted(), train_rows=rows, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        steps_per_generation=1, max_steps=-1, num_train_epochs=1,
    )  # fmt: skip
    sequences, loss_of = [], trainer._loss_of
    trainer._loss_of = lambda model, batch: (sequences.append(float(batch["sequences"])), loss_of(model, batch))[1]
    trainer.train()
    assert trainer.state.global_step == 2
    assert sequences == [8, 8, 4]
