"""What vLLM generates: the adapted model's tokens, reproducible one by one, with the log-probabilities they had."""

import copy
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fakes import adapted_model
from peft import LNTuningConfig, LoraConfig, PeftConfig, PeftModel

from svf_rl.errors import SVFError
from svf_rl.generation import Completion, Sampling, sample_seed
from svf_rl.generation.transformers_generator import TransformersGenerator
from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator
from svf_rl.svf import SVFConfig

pytestmark = pytest.mark.vllm
EOS, PAD = 2, 0
GREEDY = Sampling(max_tokens=40, temperature=0.0)
MLP = ["gate_proj", "up_proj", "down_proj"]
OTHERS: dict[str, PeftConfig] = {
    **{core: SVFConfig(core=core, task_type="CAUSAL_LM") for core in ("top:9", "projected:13", "band:2", "block:8")},
    "dora": LoraConfig(r=1, target_modules=MLP, use_dora=True, task_type="CAUSAL_LM"),
    "full": LNTuningConfig(target_modules=MLP, task_type="CAUSAL_LM"),
}
Adapted = Callable[..., PeftModel]


@pytest.fixture
def model(vllm_engine: ColocatedVLLMGenerator, adapted: Adapted) -> PeftModel:
    """An adapted model, in the engine too."""
    model = adapted(SVFConfig(init="random", init_std=0.05, task_type="CAUSAL_LM"), seed=3)
    for name, parameter in model.named_parameters():
        if "svf_z" in name:
            parameter.data = 1 + 0.25 * (parameter.data - 1)  # away from 1, and yet a model that finishes
    vllm_engine.sync(model, everything=True)
    return model


@torch.no_grad()
def _logits(model: torch.nn.Module, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """`(T, V)` logits that predict the tokens of `completion`, one sequence at a time, without padding or cache."""
    ids = torch.tensor([prompt + completion])
    return model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()


def test_greedy_tokens_agree_with_the_merged_model(
    vllm_engine: ColocatedVLLMGenerator, model: PeftModel, prompts: list[list[int]]
) -> None:
    _assert_greedy_tokens_agree(vllm_engine, copy.deepcopy(model).merge_and_unload(), prompts)


@pytest.mark.parametrize("config", OTHERS.values(), ids=OTHERS)
def test_greedy_tokens_agree_with_other_cores_and_the_baselines(
    vllm_engine: ColocatedVLLMGenerator, prompts: list[list[int]], config: PeftConfig
) -> None:
    trained = adapted_model(config, by=0.3 if isinstance(config, SVFConfig) else 0.03)
    vllm_engine.sync(trained, everything=True)
    _assert_greedy_tokens_agree(vllm_engine, trained, prompts)
    with trained.disable_adapter(), pytest.raises(AssertionError):
        _assert_greedy_tokens_agree(vllm_engine, trained, prompts)


def _assert_greedy_tokens_agree(vllm_engine: ColocatedVLLMGenerator, merged: Any, prompts: list[list[int]]) -> None:
    completions = vllm_engine.generate(prompts, GREEDY, range(len(prompts)))
    near_ties = compared = 0
    for prompt, completion in zip(prompts, completions, strict=True):
        logits = _logits(merged, prompt, completion.token_ids)
        best, second = logits.topk(2, dim=1).values.T
        clear = best - second > 1e-3 * logits.abs().max(1).values
        near_ties, compared = near_ties + int((~clear).sum()), compared + int(clear.sum())
        chosen = torch.tensor(completion.token_ids)
        assert torch.equal(logits.argmax(1)[clear], chosen[clear])
    assert compared > 100
    assert near_ties < 0.05 * compared, f"{near_ties} positions are near-ties: too many to tell anything"


def test_greedy_tokens_of_a_stale_engine_do_not(
    vllm_engine: ColocatedVLLMGenerator, adapted: Adapted, prompts: list[list[int]]
) -> None:
    """The control: another adapter answers differently."""
    vllm_engine.sync(adapted(seed=1), everything=True)
    first = vllm_engine.generate(prompts, GREEDY, range(len(prompts)))
    vllm_engine.sync(adapted(seed=2))
    assert vllm_engine.generate(prompts, GREEDY, range(len(prompts))) != first


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_of_the_distribution_that_was_sampled_from(
    vllm_engine: ColocatedVLLMGenerator, model: PeftModel, prompts: list[list[int]], temperature: float
) -> None:
    completions = vllm_engine.generate(prompts, Sampling(40, temperature), range(len(prompts)))
    for prompt, completion in zip(prompts, completions, strict=True):
        assert len(completion.logprobs) == len(completion.token_ids)
        logps = (_logits(model, prompt, completion.token_ids) / temperature).log_softmax(1)
        expected = logps.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=2e-4)


def test_a_finished_completion_ends_with_eos_and_its_logprob(
    vllm_engine: ColocatedVLLMGenerator, model: PeftModel, prompts: list[list[int]]
) -> None:
    whole = vllm_engine.generate(prompts, Sampling(100), range(len(prompts)))
    limit = sorted(len(c.token_ids) for c in whole)[len(whole) // 2]
    completions = vllm_engine.generate(prompts, Sampling(limit), range(len(prompts)))
    finished = [c for c in completions if c.token_ids[-1] == EOS]
    cut_off = [c for c in completions if c.token_ids[-1] != EOS]
    assert finished
    assert cut_off
    assert all(EOS not in c.token_ids[:-1] for c in completions)
    assert all(len(c.token_ids) == limit for c in cut_off)
    assert all(len(c.logprobs) == len(c.token_ids) and c.logprobs[-1] <= 0 for c in finished)


def test_each_completion_has_a_seed_of_its_own(
    vllm_engine: ColocatedVLLMGenerator, model: PeftModel, prompts: list[list[int]]
) -> None:
    same = [prompts[0][:2]] * 8  # a question not yet asked: anything may follow
    sampling = Sampling(24, temperature=2.0)
    different = vllm_engine.generate(same, sampling, range(8))
    assert len({tuple(c.token_ids) for c in different}) > 4
    assert len({tuple(c.token_ids) for c in vllm_engine.generate(same, sampling, [7] * 8)}) == 1
    # the seed and not the place in the batch decides
    backwards = vllm_engine.generate(same, sampling, range(7, -1, -1))
    assert [c.token_ids for c in backwards] == [c.token_ids for c in reversed(different)]


def test_a_call_depends_on_nothing_that_was_generated_before(
    vllm_engine: ColocatedVLLMGenerator, model: PeftModel, prompts: list[list[int]]
) -> None:
    """To the bit, log-probabilities included: a cached prefix would change the last one."""
    seeds = [sample_seed(0, "train", 3, i) for i in range(len(prompts))]
    first = vllm_engine.generate(prompts, Sampling(24), seeds)
    vllm_engine.generate([prompts[0] + [9, 8, 7], *prompts[::-1]], Sampling(40, 0.5), range(len(prompts) + 1))
    assert vllm_engine.generate(prompts, Sampling(24), seeds) == first
    vllm_engine.sync(model, everything=True)
    assert vllm_engine.generate(prompts, Sampling(24), seeds) == first


def test_generation_leaves_the_process_alone(
    vllm_engine: ColocatedVLLMGenerator, model: PeftModel, prompts: list[list[int]]
) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    vllm_engine.generate(prompts, Sampling(8), range(len(prompts)))
    vllm_engine.sync(model)
    assert torch.equal(torch.rand(3), expected)
    assert "RANK" not in os.environ
    assert "WORLD_SIZE" not in os.environ


def test_building_an_engine_leaves_the_generators_of_the_process_alone(bf16_build: tuple[Any, Any, Any]) -> None:
    _, before, after = bf16_build
    assert before == after


def test_top_k_one_is_greedy_and_sampling_extra_reaches_vllm(
    vllm_engine: ColocatedVLLMGenerator, model: PeftModel, prompts: list[list[int]]
) -> None:
    greedy = vllm_engine.generate(prompts, GREEDY, range(len(prompts)))
    one = vllm_engine.generate(prompts, Sampling(40, top_k=1), range(len(prompts)))
    assert [c.token_ids for c in one] == [c.token_ids for c in greedy]
    banned = greedy[0].token_ids[0]
    biased = vllm_engine.generate(
        prompts, Sampling(40, 0.0, extra={"logit_bias": {banned: -100.0}}), range(len(prompts))
    )
    assert all(banned not in c.token_ids for c in biased)


# ---- the transformers backend ----------------------------------------------------------------------------------------


def test_transformers_gives_the_same_greedy_tokens(
    vllm_engine: ColocatedVLLMGenerator, model: PeftModel, prompts: list[list[int]]
) -> None:
    """Prompts of different lengths in one batch: left padding shifts nothing."""
    assert len({len(p) for p in prompts}) > 3
    transformers = TransformersGenerator(model, eos_token_ids=[EOS], pad_token_id=PAD)
    theirs: list[Completion] = vllm_engine.generate(prompts, GREEDY, range(len(prompts)))
    ours = transformers.generate(prompts, GREEDY, range(len(prompts)))
    for prompt, a, b in zip(prompts, ours, theirs, strict=True):
        if a.token_ids != b.token_ids:  # from a near-tie on, each goes its own way
            first = next(i for i, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=False)) if x != y)
            best, second = _logits(model, prompt, a.token_ids)[first].topk(2).values
            assert best - second < 1e-3 * best.abs()
    assert sum(a.token_ids == b.token_ids for a, b in zip(ours, theirs, strict=True)) >= len(prompts) - 1
    assert all(c.logprobs is None for c in ours)


def test_an_engine_that_fails_says_so_in_one_line(
    vllm_engine: ColocatedVLLMGenerator, model: PeftModel, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no memory\nis left")

    monkeypatch.setattr(vllm_engine.llm, "generate", fail)
    with pytest.raises(SVFError, match=r"^vLLM failed: OutOfMemoryError: no memory is left"):
        vllm_engine.generate(prompts, GREEDY, range(len(prompts)))
