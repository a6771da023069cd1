"""A real vLLM server answers as the adapted model and as a colocated engine do, near-ties apart."""

import copy
from collections.abc import Callable

import pytest
import torch
from fakes import move
from peft import LoraConfig, PeftModel
from server_process import wrong_tokens

from svf_rl.errors import SVFError
from svf_rl.generation import Sampling
from svf_rl.generation.server.generator import VLLMServersGenerator
from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator
from svf_rl.svf import SVFConfig, svf_layers

pytestmark = pytest.mark.vllm
GREEDY = Sampling(max_tokens=40, temperature=0.0)
Adapted = Callable[..., PeftModel]


@pytest.mark.parametrize("updates", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_greedy_tokens_are_those_of_the_merged_model_after_each_update(
    generator: VLLMServersGenerator, adapted: Adapted, prompts: list[list[int]], updates: int
) -> None:
    model, ties, seen = adapted(0), 0, set()
    for seed in range(updates):
        move(model, seed, by=0.1, start=1.0)
        report = generator.sync(model)
        completions = generator.generate(prompts, GREEDY, range(len(prompts)))
        wrong, close = wrong_tokens(copy.deepcopy(model).merge_and_unload(), prompts, completions)
        assert wrong == 0, f"after update {seed + 1}"
        ties += close
        seen.add(str([c.token_ids for c in completions]))
        assert report.tensors == 15
    assert len(seen) > updates / 3, "the updates hardly change an answer: they prove nothing"
    assert ties < 0.05 * updates * 12 * 12


def test_the_weights_before_an_update_are_seen_to_be_others(
    generator: VLLMServersGenerator, adapted: Adapted, prompts: list[list[int]]
) -> None:
    """The control of the test above."""
    generator.sync(adapted(1))
    stale = generator.generate(prompts, GREEDY, range(len(prompts)))
    assert wrong_tokens(adapted(2), prompts, stale)[0] > 0


def test_an_update_is_z_and_little_else(generator: VLLMServersGenerator, adapted: Adapted) -> None:
    model = adapted(3)
    values = sum(p.numel() for p in model.parameters() if p.requires_grad)
    for _ in range(2):
        move(model, 4, by=0.05)
        assert 4 * values < generator.sync(model).bytes < 4 * values * 4 / 3 + 200
    pushed = sum(layer.base_weight().numel() * 4 for layer in svf_layers(model).values())
    assert pushed > 100 * 4 * values


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(40, temperature=1.0),
        Sampling(40, temperature=0.7, top_p=0.9, top_k=20, min_p=0.01, repetition_penalty=1.1),
        Sampling(6, temperature=0.0),
        Sampling(40, temperature=0.0, stop=("=", "so")),
        Sampling(40, temperature=1.0, logprobs=False),
        Sampling(24, temperature=0.0, extra={"logit_bias": {17: -100.0}, "min_tokens": 4}),
    ],
    ids=["plain", "truncated", "cut off", "stop strings", "no logprobs", "more keys"],
)
def test_answers_are_those_of_a_colocated_engine(
    generator: VLLMServersGenerator,
    vllm_engine: ColocatedVLLMGenerator,
    adapted: Adapted,
    prompts: list[list[int]],
    sampling: Sampling,
) -> None:
    model = adapted(5)
    generator.sync(model)
    vllm_engine.sync(model, everything=True)
    many = prompts * 3  # a prompt that comes again has another seed
    theirs = vllm_engine.generate(many, sampling, range(len(many)))
    ours = generator.generate(many, sampling, range(len(many)))
    same = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.token_ids == b.token_ids]
    assert len(same) >= len(many) - 1  # one near-tie
    assert {a.finished for a in ours} == {b.finished for b in theirs}
    for a, b in same:
        assert a.finished == b.finished
        assert (a.logprobs is None) == (b.logprobs is None) == (not sampling.logprobs)
        if a.logprobs is not None and b.logprobs is not None:
            torch.testing.assert_close(torch.tensor(a.logprobs), torch.tensor(b.logprobs), rtol=0, atol=2e-4)
    if sampling.temperature == 1.0:
        assert len({str(c.token_ids) for c in ours}) > 12


def test_the_same_seeds_give_the_same_answers_in_any_company(
    generator: VLLMServersGenerator, adapted: Adapted, prompts: list[list[int]]
) -> None:
    generator.sync(adapted(5))
    together = generator.generate(prompts, Sampling(24), range(12))
    backwards = generator.generate(prompts[::-1], Sampling(24), range(11, -1, -1))[::-1]
    assert sum(a.token_ids == b.token_ids for a, b in zip(together, backwards, strict=True)) >= 11


def test_a_completion_carries_its_loglikelihood(
    generator: VLLMServersGenerator, adapted: Adapted, prompts: list[list[int]]
) -> None:
    generator.sync(adapted(6))
    completions = generator.generate(prompts, Sampling(24), range(12))
    scores = generator.loglikelihood(prompts, [c.token_ids for c in completions])
    for score, completion in zip(scores, completions, strict=True):
        torch.testing.assert_close(torch.tensor(score), torch.tensor(completion.logprobs), rtol=0, atol=1e-4)
    assert generator.loglikelihood([], []) == []


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["up_proj", "q_proj"], task_type="CAUSAL_LM"),
        SVFConfig(modules_to_save=["norm"], task_type="CAUSAL_LM"),
    ],
    ids=["LoRA", "a module trained in full"],
)
def test_an_adapter_that_is_more_than_z_goes_in_full(
    generator: VLLMServersGenerator, adapted: Adapted, prompts: list[list[int]], config: LoraConfig | SVFConfig
) -> None:
    generator.sync(adapted(7))  # leaves its traces in matrices that the next adapter does not have
    model = adapted(8, config)
    assert generator.sync(model).bytes > 100_000
    completions = generator.generate(prompts, GREEDY, range(12))
    assert wrong_tokens(model, prompts, completions)[0] == 0


def test_a_model_without_adapter_is_the_checkpoint(
    generator: VLLMServersGenerator, adapted: Adapted, prompts: list[list[int]]
) -> None:
    model = adapted(7)
    generator.sync(model)
    base = model.unload()
    generator.sync(base)
    assert wrong_tokens(base, prompts, generator.generate(prompts, GREEDY, range(12)))[0] == 0


def test_what_does_not_fit_is_refused_in_one_line(generator: VLLMServersGenerator, adapted: Adapted) -> None:
    with pytest.raises(RuntimeError, match="sync before generating"):
        generator.generate([[5]], GREEDY, [0])
    generator.sync(adapted(1))
    for prompts, sampling, message in (
        ([[5] * 256], GREEDY, "256 tokens, of 256 that fit"),
        ([[5]], Sampling(4, extra={"no_such_key": 1}), "no_such_key, which the vLLM server does not know"),
        ([[5]], Sampling(4, extra={"min_tokens": 9}), "refused a request"),
    ):
        with pytest.raises(SVFError, match=message) as error:
            generator.generate(prompts, sampling, [0])
        assert "\n" not in str(error.value)
    # up to the length itself, as the engine takes it
    assert 1 <= len(generator.generate([[5] * 250], GREEDY, [0])[0].token_ids) <= 6


def test_the_model_must_be_the_one_that_the_server_has(
    generator: VLLMServersGenerator, server, adapted: Adapted
) -> None:
    from peft import get_peft_model

    base = adapted(0).unload()
    base.model.layers[1].mlp.up_proj.weight.data += 0.01
    with pytest.raises(SVFError, match=r"layers\.1\.mlp\.up_proj\.weight differs from that of the trained model"):
        generator.sync(get_peft_model(base, SVFConfig(task_type="CAUSAL_LM")))
    with pytest.raises(SVFError, match="with --dtype bfloat16"):
        VLLMServersGenerator([server.url], dtype="bfloat16")


def test_values_that_are_not_finite_reach_no_server(
    generator: VLLMServersGenerator, adapted: Adapted, prompts: list[list[int]]
) -> None:
    model = adapted(9)
    generator.sync(model)
    before = [c.token_ids for c in generator.generate(prompts[:4], GREEDY, range(4))]
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad)[0] = torch.nan
    with pytest.raises(SVFError, match="NaN"):
        generator.sync(model)
    assert [c.token_ids for c in generator.generate(prompts[:4], GREEDY, range(4))] == before
