"""CompletionGenerator through transformers, and what is common to all generators."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import GPT2Config, GPT2LMHeadModel

from svf_rl.generation import Sampling, sample_seed
from svf_rl.generation.transformers_generator import TransformersGenerator

EOS, PAD = 2, 0


@pytest.fixture
def model(adapted: Callable[..., PeftModel]) -> PeftModel:
    model = adapted()
    for name, parameter in model.named_parameters():
        if "svf_z" in name:
            parameter.data = 1 + 0.1 * (parameter.data - 1)
    return model


def _rollouts(model: PeftModel, batch_size: int = 64) -> TransformersGenerator:
    return TransformersGenerator(model, eos_token_ids=[EOS], pad_token_id=PAD, batch_size=batch_size)


def test_left_padding_changes_no_greedy_token(model: PeftModel, prompts: list[list[int]]) -> None:
    greedy, seeds = Sampling(24, 0.0), range(len(prompts))
    together, alone = _rollouts(model), _rollouts(model, batch_size=1)
    assert together.generate(prompts, greedy, seeds) == alone.generate(prompts, greedy, seeds)


def test_eos_is_kept_and_nothing_after_it(model: PeftModel, prompts: list[list[int]]) -> None:
    whole = _rollouts(model).generate(prompts, Sampling(100, 0.0), range(len(prompts)))
    limit = sorted(len(c.token_ids) for c in whole)[len(whole) // 2]
    completions = _rollouts(model).generate(prompts, Sampling(limit, 0.0), range(len(prompts)))
    assert {c.token_ids[-1] == EOS for c in completions} == {True, False}
    assert all(EOS not in c.token_ids[:-1] for c in completions)
    assert all(len(c.token_ids) == limit for c in completions if c.token_ids[-1] != EOS)


def test_a_completion_ends_where_the_positions_do() -> None:
    """GPT-2's are learned: one more is none."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2))
    prompts = [[5] * 30, [6] * 4, [7] * 31, [8] * 4]
    whole = TransformersGenerator(model, eos_token_ids=[], pad_token_id=PAD).generate(
        prompts, Sampling(12, 0.0), range(4)
    )
    assert [len(completion.token_ids) for completion in whole] == [2, 12, 1, 12]
    alone = TransformersGenerator(model, eos_token_ids=[], pad_token_id=PAD, batch_size=1)
    assert alone.generate(prompts, Sampling(12, 0.0), range(4)) == whole


def test_any_of_several_end_tokens_ends_a_completion(model: PeftModel, prompts: list[list[int]]) -> None:
    first = _rollouts(model).generate(prompts[:1], Sampling(24, 0.0), [0])[0].token_ids
    other = first[3]
    generator = TransformersGenerator(model, eos_token_ids=[EOS, other], pad_token_id=PAD)
    assert generator.generate(prompts[:1], Sampling(24, 0.0), [0])[0].token_ids == first[: first.index(other) + 1]


def test_the_seed_decides_and_the_process_is_left_alone(model: PeftModel, prompts: list[list[int]]) -> None:
    generator, sampling = _rollouts(model), Sampling(16, temperature=3.0)
    model.train()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = generator.generate([prompts[0]] * 4, sampling, [1, 2, 3, 4])
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    assert len({tuple(c.token_ids) for c in first}) > 1
    assert generator.generate([prompts[0]] * 4, sampling, [1, 2, 3, 4]) == first
    assert generator.generate([prompts[0]] * 4, sampling, [9, 2, 3, 4]) != first


def test_the_model_in_training_is_the_generator(model: PeftModel, prompts: list[list[int]]) -> None:
    """Nothing to push: what is generated follows the trained values at once."""
    generator, greedy = _rollouts(model), Sampling(16, 0.0)
    before = generator.generate(prompts, greedy, range(len(prompts)))
    assert generator.sync(model).bytes == 0
    for name, parameter in model.named_parameters():
        if "svf_z" in name:
            parameter.data = -parameter.data
    assert generator.generate(prompts, greedy, range(len(prompts))) != before


@pytest.mark.parametrize(
    "setting",
    [
        {"no_repeat_ngram_size": 2},
        {"num_beams": 3},
        {"min_new_tokens": 20},
        {"suppress_tokens": list(range(5, 300))},
        {"repetition_penalty": 3.0},
        {"typical_p": 0.2},
        {"top_k": 1},
        {"temperature": 0.01},
        {"eta_cutoff": 0.1},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_settings_that_a_model_comes_with_steer_nothing(
    model: PeftModel, prompts: list[list[int]], setting: dict[str, object]
) -> None:
    """Rollouts are from the distribution that is trained, and an evaluation asks for what it says."""
    wanted = [Sampling(16, 0.0), Sampling(16, 2.0)]
    before = [_rollouts(model).generate(prompts, sampling, range(12)) for sampling in wanted]
    own = model.get_base_model().generation_config
    own.update(**setting)
    assert [_rollouts(model).generate(prompts, sampling, range(12)) for sampling in wanted] == before
    assert model.get_base_model().generation_config is own
    taken = {"top_k", "temperature", "repetition_penalty"} & setting.keys()  # `Sampling` itself has those
    asked = Sampling(16, **{"temperature": 2.0, **{key: setting[key] for key in taken}})  # type: ignore[arg-type]
    asked = asked if taken else replace(asked, extra=dict(setting))
    assert _rollouts(model).generate(prompts, asked, range(12)) != before[1]


def test_sample_seeds_differ_by_place_and_by_nothing_else() -> None:
    seeds = {
        sample_seed(run, purpose, step, index)
        for run in range(3)
        for purpose in ("train", "eval")
        for step in range(10)
        for index in range(20)
    }
    assert len(seeds) == 3 * 2 * 10 * 20
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert sample_seed(0, "train", 1, 2) == sample_seed(0, "train", 1, 2) == 667385916


def test_a_greedy_request_keeps_length_and_penalty_and_drops_the_rest() -> None:
    sampling = Sampling(7, 0.8, top_p=0.9, top_k=5, min_p=0.1, repetition_penalty=1.2, extra={"seed_words": 1})
    assert sampling.greedy() == Sampling(7, 0.0, repetition_penalty=1.2, extra={"seed_words": 1})
