"""Stop strings: a completion ends with the first of them, whatever generates it, and counts as finished."""

import dataclasses
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer

from svf_rl.errors import SVFError
from svf_rl.generation import Completion, Sampling, cut_at_stop
from svf_rl.generation.transformers_generator import TransformersGenerator
from svf_rl.quickstart import model_path
from svf_rl.svf import SVFConfig

GREEDY = Sampling(max_tokens=40, temperature=0.0)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(model_path())


@pytest.fixture
def model(adapted: Any) -> PeftModel:
    """The bundled model, with an adapter that changes nothing."""
    model = adapted(SVFConfig(task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "svf_z" in name:
            parameter.data.fill_(1.0)
    return model


@pytest.fixture(params=["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
def generator(request: pytest.FixtureRequest, model: PeftModel, tokenizer: Any) -> Any:
    if request.param == "transformers":
        return TransformersGenerator(model, eos_token_ids=[2], pad_token_id=0, tokenizer=tokenizer)
    engine = request.getfixturevalue("vllm_engine")
    engine.sync(model, everything=True)
    return engine


def stopping(*stop: str, **changes: Any) -> Sampling:
    return dataclasses.replace(GREEDY, stop=stop, **changes)


def test_the_tokens_up_to_the_stop_string_are_those_without_it(
    generator: Any, prompts: list[list[int]], tokenizer: Any
) -> None:
    """The worked sums hold "=", some of them twice: the first counts."""
    seeds = range(len(prompts))
    whole = generator.generate(prompts, GREEDY, seeds)
    stopped = generator.generate(prompts, stopping("=", "answer"), seeds)
    assert sum(len(s.token_ids) < len(w.token_ids) for s, w in zip(stopped, whole, strict=True)) >= 10
    for short, long in zip(stopped, whole, strict=True):
        assert short.token_ids == long.token_ids[: len(short.token_ids)]
        text = tokenizer.decode(short.token_ids, skip_special_tokens=True)
        assert cut_at_stop(text, ("=", "answer")) == cut_at_stop(
            tokenizer.decode(long.token_ids, skip_special_tokens=True), ("=", "answer")
        )
        assert not any(string in tokenizer.decode(short.token_ids[:-1]) for string in ("=", "answer"))
        if short.logprobs is not None:
            assert len(short.logprobs) == len(short.token_ids)


def test_finished_means_eos_or_a_stop_string_and_not_the_limit(generator: Any, prompts: list[list[int]]) -> None:
    def finished(sampling: Sampling) -> set[bool]:
        return {c.finished for c in generator.generate(prompts[:6], sampling, range(6))}

    assert finished(GREEDY) == {True}
    assert finished(stopping("=")) == {True}
    assert finished(dataclasses.replace(GREEDY, max_tokens=3)) == {False}
    assert finished(stopping("never written", max_tokens=3)) == {False}


def test_padding_that_is_the_end_token_adds_none(model: PeftModel, tokenizer: Any, prompts: list[list[int]]) -> None:
    """Rows that stop early are filled up with padding, which many models have no token of its own for."""
    separate = TransformersGenerator(model, eos_token_ids=[2], pad_token_id=0, tokenizer=tokenizer)
    shared = TransformersGenerator(model, eos_token_ids=[2], pad_token_id=2, tokenizer=tokenizer)
    seeds = range(len(prompts))
    expected = separate.generate(prompts, stopping(", "), seeds)
    assert {2 in c.token_ids for c in expected} == {True, False}
    with torch.no_grad():
        assert shared.generate(prompts, stopping(", "), seeds) == expected


def test_without_a_tokenizer_stop_strings_are_refused(model: PeftModel, prompts: list[list[int]]) -> None:
    with pytest.raises(SVFError, match="tokenizer="):
        TransformersGenerator(model, eos_token_ids=[2], pad_token_id=0).generate(prompts, stopping("="), [0])


def test_what_counts_as_the_answer() -> None:
    assert cut_at_stop("def f(): pass\n```\nThis", ("\n```",)) == "def f(): pass"
    assert cut_at_stop("a b c", ("c", "b")) == "a "
    assert cut_at_stop("a b c", ()) == cut_at_stop("a b c", ("x",)) == "a b c"


def test_greedy_keeps_the_stop_strings() -> None:
    assert Sampling(5, 1.0, stop=("x",)).greedy() == Sampling(5, 0.0, stop=("x",))
    assert Completion([1], None, True) != Completion([1], None, False)
