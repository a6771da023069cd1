"""Log-probabilities, entropy and exact divergence over the vocabulary, against plain fp64 autograd."""

import pytest
import torch
from torch import Tensor
from transformers import CohereConfig, Gemma2Config, GraniteConfig, LlamaConfig

from svf_rl.losses import token_logprobs as vocabulary
from svf_rl.losses.token_logprobs import CHUNK, LogitTransform, TokenStatistics, token_statistics

TRANSFORMS = {
    "plain": LogitTransform(),
    "temperature": LogitTransform(temperature=0.7),
    "scale": LogitTransform(scale=0.0625 * 8),
    "softcap": LogitTransform(softcap=3.0),
    "all": LogitTransform(scale=1.5, softcap=3.0, temperature=1.3),
}
V, D = 37, 12


def _inputs(n: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(n)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    hidden = draw(n, D)
    return {
        "hidden": hidden,
        "labels": torch.randint(0, V, (n,), generator=generator),
        "weight": draw(V, D),
        "bias": draw(V),
        "ref_hidden": hidden + 0.3 * draw(n, D),
    }


def _naive(inputs: dict[str, Tensor], t: LogitTransform, direction: str) -> TokenStatistics:
    """The definitions, all logits at once."""

    def log_probabilities(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        logits = t.scale * (hidden @ weight.T + bias)
        if t.softcap:
            logits = t.softcap * torch.tanh(logits / t.softcap)
        return torch.log_softmax(logits / t.temperature, 1)

    lp = log_probabilities(inputs["hidden"], inputs["weight"], inputs["bias"])
    lq = log_probabilities(inputs["ref_hidden"], inputs["weight"].detach(), inputs["bias"].detach())
    a, b = (lp, lq) if direction == "policy_ref" else (lq, lp)
    rows = torch.arange(len(lp))
    return TokenStatistics(
        lp[rows, inputs["labels"]],
        lq[rows, inputs["labels"]],
        -(lp.exp() * lp).sum(1),
        (a.exp() * (a - b)).sum(1),
    )


def _ours(inputs: dict[str, Tensor], t: LogitTransform, direction: str | None) -> TokenStatistics:
    return token_statistics(
        inputs["hidden"],
        inputs["labels"],
        inputs["weight"],
        inputs["bias"],
        t,
        inputs["ref_hidden"],
        direction=direction,
    )


def _doubled(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}


@pytest.mark.parametrize("direction", ["policy_ref", "ref_policy"])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_values_equal_the_definitions_also_across_chunks(transform: LogitTransform, direction: str) -> None:
    inputs = _inputs(2 * CHUNK + 3)
    ours, naive = _ours(inputs, transform, direction), _naive(_doubled(inputs), transform, direction)
    torch.testing.assert_close(ours.logps.double(), naive.logps, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(ours.ref_logps.double(), naive.ref_logps, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(ours.entropy.double(), naive.entropy, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(ours.kl.double().mean(), naive.kl.mean(), rtol=1e-5, atol=0)
    # of one token: fp32 logits have an error of their own
    torch.testing.assert_close(ours.kl.double(), naive.kl, rtol=1e-5, atol=5e-7)


@pytest.mark.parametrize("direction", ["policy_ref", "ref_policy"])
def test_a_divergence_near_zero_keeps_its_digits(direction: str) -> None:
    """Summing p·(log p − log q) in fp32 has an error of 1e-7 whatever the divergence: of this one, a tenth and more."""
    inputs = _inputs(64, torch.float64)
    inputs["ref_hidden"] = inputs["hidden"] + 1e-3 * (inputs["ref_hidden"] - inputs["hidden"])
    exact = _naive(inputs, LogitTransform(), direction).kl
    assert exact.max() < 1e-5
    ours = _ours({k: v.float() if v.is_floating_point() else v for k, v in inputs.items()}, LogitTransform(), direction)
    assert (ours.kl >= 0).all()
    torch.testing.assert_close(ours.kl.double().mean(), exact.mean(), rtol=5e-3, atol=0)


@pytest.mark.parametrize("direction", ["policy_ref", "ref_policy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_identical_hidden_states_have_a_divergence_of_exactly_zero(dtype: torch.dtype, direction: str) -> None:
    inputs = _inputs(CHUNK + 5, dtype)
    inputs["ref_hidden"] = inputs["hidden"].clone()
    inputs["hidden"].requires_grad_()
    statistics = _ours(inputs, LogitTransform(softcap=20.0, temperature=0.9), direction)
    assert statistics.kl.abs().max() == 0
    statistics.kl.sum().backward()
    assert inputs["hidden"].grad.abs().max() == 0


@pytest.mark.parametrize("direction", ["policy_ref", "ref_policy", None])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_gradients_equal_autograd(transform: LogitTransform, direction: str | None) -> None:
    trained = ("hidden", "weight", "bias")
    inputs = _inputs(CHUNK + 7)
    doubled = _doubled(inputs)
    for name in trained:
        inputs[name].requires_grad_()
        doubled[name].requires_grad_()
    torch.manual_seed(0)
    a, b, c = torch.randn(3, CHUNK + 7)

    def objective(s: TokenStatistics) -> Tensor:
        total = (a.to(s.logps) * s.logps).sum() + (c.to(s.logps) * s.entropy).sum()
        return total if direction is None else total + (b.to(s.logps) * s.kl).sum()

    objective(_ours(inputs, transform, direction)).backward()
    objective(_naive(doubled, transform, direction or "policy_ref")).backward()
    for name in trained:
        error = (inputs[name].grad - doubled[name].grad).abs().max() / doubled[name].grad.abs().max()
        assert error < 2e-6, name


def test_the_gradient_of_entropy_alone_needs_no_advantage() -> None:
    inputs = _inputs(5)
    doubled = _doubled(inputs)
    for each in (inputs, doubled):
        each["hidden"].requires_grad_()
    _ours(inputs, LogitTransform(), None).entropy.sum().backward()
    _naive(doubled, LogitTransform(), "policy_ref").entropy.sum().backward()
    torch.testing.assert_close(inputs["hidden"].grad.double(), doubled["hidden"].grad, rtol=1e-4, atol=1e-6)


def test_the_gradient_of_logps_alone_needs_no_reference() -> None:
    inputs = _inputs(5)
    inputs["hidden"].requires_grad_()
    statistics = token_statistics(
        inputs["hidden"], inputs["labels"], inputs["weight"], None, LogitTransform(), direction=None
    )
    assert statistics.kl is None
    assert statistics.ref_logps is None
    statistics.logps.sum().backward()
    assert inputs["hidden"].grad.abs().min() > 0


def test_the_reference_may_have_another_output_layer() -> None:
    inputs = _inputs(9)
    other = torch.randn(V, D, generator=torch.Generator().manual_seed(5))
    statistics = token_statistics(
        inputs["hidden"], inputs["labels"], inputs["weight"], inputs["bias"], LogitTransform(), inputs["hidden"],
        (other, None), "ref_policy",
    )  # fmt: skip
    lp = (inputs["hidden"] @ inputs["weight"].T + inputs["bias"]).double().log_softmax(1)
    lq = (inputs["hidden"] @ other.T).double().log_softmax(1)
    torch.testing.assert_close(statistics.kl.double(), (lq.exp() * (lq - lp)).sum(1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("direction", ["policy_ref", "ref_policy"])
def test_a_divergence_of_far_distributions_is_finite_and_right(direction: str) -> None:
    """As those of sharp models are at a low temperature: no e^d of a term overflows."""
    inputs = {**_inputs(6), "weight": 30 * torch.eye(V), "bias": torch.zeros(V)}
    for seed, name in enumerate(("hidden", "ref_hidden")):
        inputs[name] = torch.randn(6, V, generator=torch.Generator().manual_seed(seed))
    found = _ours(inputs, LogitTransform(), direction).kl
    expected = _naive(_doubled(inputs), LogitTransform(), direction).kl
    assert found is not None
    assert expected is not None
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


def test_no_token_at_all() -> None:
    inputs = _inputs(0)
    inputs["hidden"].requires_grad_()
    inputs["weight"].requires_grad_()
    statistics = _ours(inputs, LogitTransform(), "policy_ref")
    assert statistics.logps.shape == statistics.kl.shape == (0,)
    (statistics.logps.sum() + statistics.kl.sum()).backward()
    assert inputs["weight"].grad.abs().max() == 0


def test_extra_memory_is_one_chunk_whatever_the_length() -> None:
    """The largest tensor that any operation of forward and backward makes is a chunk × vocabulary; and what lives
    between the two, inputs apart, is some numbers a token."""
    n, vocabulary_size = 12 * CHUNK, 1024
    hidden = torch.randn(n, D, requires_grad=True)
    weight, labels = torch.randn(vocabulary_size, D), torch.randint(0, vocabulary_size, (n,))
    made: list[int] = []
    saved: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            made.extend(t.numel() for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, Tensor))
            return out

    with Watch(), torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        statistics = token_statistics(
            hidden, labels, weight, None, LogitTransform(), hidden.detach() + 0.1, direction="policy_ref"
        )
        (statistics.logps + statistics.kl).sum().backward()
    assert max(made) == CHUNK * vocabulary_size
    assert sum(made) > n * vocabulary_size  # the whole was computed, a chunk at a time
    assert max(saved) <= n * D


def test_resident_memory_stays_at_a_few_chunks() -> None:
    """Measured by the allocator: at most 10 chunk × vocabulary tensors live together, of the 40 in the whole."""
    n, vocabulary_size = 40 * CHUNK, 2048
    hidden = torch.randn(n, D, requires_grad=True)
    weight, labels = torch.randn(vocabulary_size, D), torch.randint(0, vocabulary_size, (n,))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        statistics = token_statistics(
            hidden, labels, weight, None, LogitTransform(), hidden.detach() + 0.1, direction="policy_ref"
        )
        (statistics.logps + statistics.kl).sum().backward()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    chunk_bytes = 4 * CHUNK * vocabulary_size
    assert peak < 10 * chunk_bytes + 4 * n * (D + 20)


def test_transforms_are_read_from_the_model_configuration() -> None:
    assert LogitTransform.of(LlamaConfig(), 0.7) == LogitTransform(1.0, None, 0.7)
    assert LogitTransform.of(Gemma2Config(final_logit_softcapping=30.0), 1.0) == LogitTransform(1.0, 30.0, 1.0)
    assert LogitTransform.of(CohereConfig(logit_scale=0.0625), 1.0) == LogitTransform(0.0625, None, 1.0)
    assert LogitTransform.of(GraniteConfig(logits_scaling=8.0), 1.0) == LogitTransform(0.125, None, 1.0)


def test_greedy_decoding_is_trained_at_temperature_one() -> None:
    assert LogitTransform.of(LlamaConfig(), 0.0).temperature == 1.0


def test_the_chunk_is_a_matter_of_memory_and_not_of_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = _inputs(101)
    whole = _ours(inputs, LogitTransform(), "policy_ref")
    monkeypatch.setattr(vocabulary, "CHUNK", 7)
    parts = _ours(inputs, LogitTransform(), "policy_ref")
    torch.testing.assert_close(parts.kl, whole.kl, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts.logps, whole.logps)
