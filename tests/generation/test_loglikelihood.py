"""How likely a continuation is: the same from both generators and from a plain forward pass."""

from collections.abc import Callable

import pytest
import torch
from peft import PeftModel

from svf_rl.errors import SVFError
from svf_rl.generation import CompletionGenerator, Sampling
from svf_rl.generation import transformers_generator as module
from svf_rl.generation.transformers_generator import TransformersGenerator
from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator

EOS, PAD = 2, 0
TOLERANCE = {"rtol": 0, "atol": 1e-4}
Adapted = Callable[..., PeftModel]


@pytest.fixture
def model(adapted: Adapted) -> PeftModel:
    return _nearer(adapted(seed=5))


@pytest.fixture(params=["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
def generator(request: pytest.FixtureRequest, model: PeftModel) -> CompletionGenerator:
    """A generator that holds `model`."""
    if request.param == "transformers":
        return _transformers(model)
    engine: ColocatedVLLMGenerator = request.getfixturevalue("vllm_engine")
    engine.sync(model, everything=True)
    return engine


@pytest.fixture
def continuations(prompts: list[list[int]]) -> list[list[int]]:
    """One to twelve tokens, likely and unlikely ones, some with the end-of-sequence token."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(3, 400, (1 + i,), generator=generator).tolist() for i in range(len(prompts))]
    return [[*ids, EOS] if i % 3 == 0 else ids for i, ids in enumerate(drawn)]


def _nearer(model: PeftModel) -> PeftModel:
    """Trained values near enough to 1 for a model that finishes."""
    for name, parameter in model.named_parameters():
        if "svf_z" in name:
            parameter.data = 1 + 0.25 * (parameter.data - 1)
    return model


def _transformers(model: PeftModel, batch_size: int = 4) -> TransformersGenerator:
    return TransformersGenerator(model, eos_token_ids=[EOS], pad_token_id=PAD, batch_size=batch_size)


@torch.no_grad()
def _plain(model: torch.nn.Module, prompt: list[int], continuation: list[int]) -> list[float]:
    """Of one sequence, without padding, batch or cache."""
    logps = model(input_ids=torch.tensor([prompt + continuation])).logits[0].float().log_softmax(-1)
    return [logps[len(prompt) - 1 + i, token].item() for i, token in enumerate(continuation)]


def _assert_close(actual: list[list[float]], expected: list[list[float]]) -> None:
    assert [len(values) for values in actual] == [len(values) for values in expected]
    flat = [torch.tensor([value for row in rows for value in row]) for rows in (actual, expected)]
    torch.testing.assert_close(*flat, **TOLERANCE)


def test_each_token_has_its_logprob_under_a_plain_forward_pass(
    generator: CompletionGenerator, model: PeftModel, prompts: list[list[int]], continuations: list[list[int]]
) -> None:
    expected = [_plain(model, p, c) for p, c in zip(prompts, continuations, strict=True)]
    _assert_close(generator.loglikelihood(prompts, continuations), expected)


def test_neither_order_nor_company_matters(
    generator: CompletionGenerator, prompts: list[list[int]], continuations: list[list[int]]
) -> None:
    together = generator.loglikelihood(prompts, continuations)
    _assert_close(generator.loglikelihood(prompts[::-1], continuations[::-1])[::-1], together)
    alone = [generator.loglikelihood([p], [c])[0] for p, c in zip(prompts, continuations, strict=True)]
    _assert_close(alone, together)


def test_several_continuations_of_one_prompt_share_no_cache(
    generator: CompletionGenerator, model: PeftModel, prompts
) -> None:
    continuations = [[7, 8, 9], [7, 8], [7, 8, 9, EOS], [8]]
    expected = [_plain(model, prompts[0], c) for c in continuations]
    _assert_close(generator.loglikelihood([prompts[0]] * 4, continuations), expected)


def test_after_a_sync_the_new_weights_are_asked(
    generator: CompletionGenerator, adapted: Adapted, prompts: list[list[int]], continuations: list[list[int]]
) -> None:
    before = generator.loglikelihood(prompts, continuations)
    other = _nearer(adapted(seed=6))
    generator.sync(other)
    expected = [_plain(other, p, c) for p, c in zip(prompts, continuations, strict=True)]
    after = generator.loglikelihood(prompts, continuations)
    _assert_close(after, expected)
    assert max(abs(a[0] - b[0]) for a, b in zip(before, after, strict=True)) > 0.01


@pytest.mark.vllm
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_completion_of_vllm_carries_its_loglikelihood(
    vllm_engine: ColocatedVLLMGenerator, model: PeftModel, prompts: list[list[int]], temperature: float
) -> None:
    """Greedy ones too: their log-probabilities are those of temperature 1, not 0 for a certain choice."""
    vllm_engine.sync(model, everything=True)
    completions = vllm_engine.generate(prompts, Sampling(24, temperature), range(len(prompts)))
    scores = vllm_engine.loglikelihood(prompts, [c.token_ids for c in completions])
    _assert_close([c.logprobs or [] for c in completions], scores)
    assert min(map(sum, scores)) < -0.5


def test_nothing_asked_is_nothing_answered(generator: CompletionGenerator) -> None:
    assert generator.loglikelihood([], []) == []


@pytest.mark.parametrize(
    ("prompts", "continuations", "message"),
    [
        ([[5]], [[]], "continuation 0 has no tokens"),
        ([[5], []], [[6], [6]], "prompt 1 has no tokens"),
        ([[5], [6]], [[7]], "2 prompts and 1 continuations"),
        ([[5], [6] * 2040], [[7], [7] * 9], "prompt 1 and its continuation have 2049 tokens"),
    ],
)
def test_what_has_no_loglikelihood_is_refused(
    generator: CompletionGenerator, prompts: list[list[int]], continuations: list[list[int]], message: str
) -> None:
    with pytest.raises(SVFError, match=message) as error:
        generator.loglikelihood(prompts, continuations)
    assert "\n" not in str(error.value)


@pytest.mark.vllm
def test_vllm_takes_one_token_less_than_its_length(vllm_engine: ColocatedVLLMGenerator, model: PeftModel) -> None:
    vllm_engine.sync(model, everything=True)
    assert len(vllm_engine.loglikelihood([[5] * 200], [[6] * 55])[0]) == 55
    with pytest.raises(SVFError, match="256 tokens, of 255 that fit"):
        vllm_engine.loglikelihood([[5] * 200], [[6] * 56])


def test_logits_are_made_for_no_more_positions_than_the_limit(
    model: PeftModel, prompts: list[list[int]], continuations: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompt tokens have none, and a batch is cut where its continuations are long."""
    shapes = []
    base = model.get_base_model()
    base.lm_head.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    monkeypatch.setattr(module, "_LOGITS", 24)
    expected = [_plain(model, p, c) for p, c in zip(prompts, continuations, strict=True)]
    shapes.clear()
    _assert_close(_transformers(model, batch_size=64).loglikelihood(prompts, continuations), expected)
    assert max(batch * length for batch, length, _ in shapes) <= 24
    assert len(shapes) < len(prompts)


def test_a_model_in_training_stays_so(model: PeftModel, prompts: list[list[int]]) -> None:
    model.train()
    _transformers(model).loglikelihood(prompts[:1], [[5]])
    assert model.training
