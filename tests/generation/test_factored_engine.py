"""An engine that computes with the trained model's own factors, and gives each request an adapter of its own."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import SIZES
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, SmolLM3Config, SmolLM3ForCausalLM

from svf_rl.errors import SVFError
from svf_rl.generation import Completion, Sampling
from svf_rl.generation.vllm import CannotServeFactors, colocated
from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator
from svf_rl.generation.weights import SharedWeights, active_multipliers
from svf_rl.quickstart import model_path
from svf_rl.svf import SVFConfig, svf_layers
from svf_rl.svf.decompose import Factors, thin_svd
from svf_rl.svf.layer import SVFFactors

pytestmark = pytest.mark.vllm
GREEDY = Sampling(max_tokens=24, temperature=0.0)
Expert = dict[str, Tensor]
TIE = {torch.float32: 1e-3, torch.bfloat16: 3e-2}  # of the largest logit
# some parts of vLLM's fused layers, so that the others stay plain
TARGETS = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def _model(
    path: str = str(model_path()), targets: list[str] = TARGETS, dtype: torch.dtype = torch.float32
) -> PeftModel:
    base = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    return get_peft_model(base, SVFConfig(target_modules=targets, task_type="CAUSAL_LM")).eval()


def _expert(model: PeftModel, seed: int, by: float = 0.2) -> Expert:
    """`z` of an expert for each layer."""
    random = torch.Generator().manual_seed(seed)
    return {
        path: 1 + by * torch.randn(layer.svf_factors.s.numel(), generator=random)
        for path, layer in svf_layers(model).items()
    }


def _become(model: PeftModel, expert: Expert | None) -> None:
    for path, layer in svf_layers(model).items():
        z = layer.svf_z["default"].weight
        z.data = torch.ones_like(z) if expert is None else expert[path].clone()


def _put(engine: ColocatedVLLMGenerator, model: PeftModel, number: int, expert: Expert | None) -> None:
    _become(model, expert)
    engine.adapters.put(number, active_multipliers(model))


@torch.no_grad()
def _check_tokens(
    model: PeftModel, experts: Sequence[Expert | None], prompts: Sequence[list[int]], done: Sequence[Completion]
) -> None:
    """Each completion is what the merged model of its expert chooses, near-ties apart, and has its probabilities."""
    compared = near_ties = 0
    merged = {}
    for expert, prompt, completion in zip(experts, prompts, done, strict=True):
        if id(expert) not in merged:
            _become(model, expert)
            merged[id(expert)] = copy.deepcopy(model).merge_and_unload()
        ids = torch.tensor([prompt + completion.token_ids])
        logits = merged[id(expert)](input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
        chosen = torch.tensor(completion.token_ids)
        best, second = logits.topk(2, dim=1).values.T
        clear = best - second > TIE[model.dtype] * logits.abs().max(1).values
        assert torch.equal(logits.argmax(1)[clear], chosen[clear])
        compared, near_ties = compared + int(clear.sum()), near_ties + int((~clear).sum())
        if completion.logprobs is not None and model.dtype == torch.float32:
            logps = logits.log_softmax(1).gather(1, chosen[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(completion.logprobs), logps, rtol=0, atol=3e-4)
    assert compared > 50
    assert near_ties < 0.2 * compared, f"{near_ties} near-ties of {compared}: too many to tell anything"


@pytest.fixture(scope="module")
def model() -> PeftModel:
    return _model()


@pytest.fixture(scope="module")
def engine(model: PeftModel) -> ColocatedVLLMGenerator:
    return _engine(model)


def _engine(model: PeftModel, **settings: Any) -> ColocatedVLLMGenerator:
    return _start(str(model_path()), SharedWeights.of(model), dtype=model.dtype, **settings)


def _start(path: str, shared: SharedWeights, **settings: Any) -> ColocatedVLLMGenerator:
    defaults = {"dtype": torch.float32, "max_model_len": 256, "max_num_seqs": 64, "enforce_eager": True}
    return ColocatedVLLMGenerator(path, seed=0, device="cpu", shared=shared, **{**defaults, **settings})


def test_each_request_of_a_batch_is_answered_by_its_own_expert(
    engine: ColocatedVLLMGenerator, model: PeftModel, prompts: list[list[int]]
) -> None:
    experts = [None, *(_expert(model, seed) for seed in range(8))]
    for number, expert in enumerate(experts[1:], start=1):
        _put(engine, model, number, expert)
    asked = [(prompt, number) for prompt in prompts for number in range(9)]  # the same prompt of each, in turn
    done = engine.generate(
        [prompt for prompt, _ in asked], GREEDY, [0] * len(asked), adapters=[number for _, number in asked]
    )
    _check_tokens(model, [experts[number] for _, number in asked], [prompt for prompt, _ in asked], done)
    alone = [engine.generate([prompt], GREEDY, [0], adapters=[number])[0] for prompt, number in asked[:9]]
    assert [completion.token_ids for completion in alone] == [completion.token_ids for completion in done[:9]]


def test_the_engine_computes_with_the_tensors_of_the_model(engine: ColocatedVLLMGenerator, model: PeftModel) -> None:
    served = {
        part.untyped_storage().data_ptr()
        for module in engine.model.modules()
        for part in [*(p.weight for p in getattr(module, "svf_parts", ())), getattr(module, "svf_vt", None)]
        if part is not None
    }
    for layer in svf_layers(model).values():
        u, _, vt = layer.svf_factors.tensors()
        assert u.untyped_storage().data_ptr() in served
        assert vt.untyped_storage().data_ptr() in served
    weights = {name: p for name, p in engine.model.named_parameters() if "gate_up_proj" in name or "down_proj" in name}
    assert weights
    assert all(p.numel() == 0 for p in weights.values())


def test_a_sync_writes_the_row_of_the_policy_and_no_weight(
    engine: ColocatedVLLMGenerator, model: PeftModel, prompts: list[list[int]]
) -> None:
    before = {name: p.clone() for name, p in engine.model.named_parameters()}
    other = _expert(model, 50)
    _put(engine, model, 2, other)
    for seed in (51, 52):
        policy = _expert(model, seed)
        _become(model, policy)
        assert engine.sync(model).tensors == 1
        done = engine.generate(prompts, GREEDY, [0] * len(prompts))
        _check_tokens(model, [policy] * len(prompts), prompts, done)
    _check_tokens(model, [other] * 12, prompts, engine.generate(prompts, GREEDY, [0] * 12, adapters=[2] * len(prompts)))
    assert all(torch.equal(before[name], p) for name, p in engine.model.named_parameters())


def test_more_adapters_than_rows_are_taken_without_a_restart(
    engine: ColocatedVLLMGenerator, model: PeftModel, prompts: list[list[int]]
) -> None:
    experts = {100 + number: _expert(model, 100 + number) for number in range(40)}
    for number, expert in experts.items():
        _put(engine, model, number, expert)
    numbers = list(experts) * 2
    asked = [prompts[number % len(prompts)] for number in numbers]
    done = engine.generate(asked, GREEDY, [0] * len(asked), adapters=numbers)
    _check_tokens(model, [experts[number] for number in numbers], asked, done)
    for number in experts:
        assert engine.adapters.remove_adapter(number)


def test_experts_asked_the_same_prompt_in_turn_share_no_cached_prefix(
    engine: ColocatedVLLMGenerator, model: PeftModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With vLLM's cache of prefixes left on from call to call: it is kept by adapter."""
    asked = [[5 + i, *range(6, 145)] for i in range(6)]  # more than a block of 128
    experts: list[Expert | None] = [_expert(model, 21, by=0.4), _expert(model, 22, by=0.4), None]
    for number, expert in zip((21, 22), experts, strict=False):
        _put(engine, model, number, expert)
    monkeypatch.setattr(engine.llm, "reset_prefix_cache", lambda: None)
    for number, expert in zip((21, 22, 0, 21, 22), [*experts, *experts], strict=False):
        done = engine.generate(asked, GREEDY, [0] * 6, adapters=[number] * 6)
        _check_tokens(model, [expert] * 6, asked, done)


def test_a_cache_too_small_for_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that were put out go on as they began: each with its expert."""
    model = _model()
    blocks = 32  # of 128 tokens; each request begins in one, and needs a second when it has written nine tokens
    llm_class = colocated._import_llm()
    monkeypatch.setattr(colocated, "_import_llm", lambda: partial(llm_class, num_gpu_blocks_override=blocks))
    engine = _engine(model)
    monkeypatch.undo()
    scheduler = engine.llm.llm_engine.engine_core.engine_core.scheduler
    put_out = []
    monkeypatch.setattr(scheduler, "_preempt_request", _noting(scheduler._preempt_request, put_out))
    experts: list[Expert | None] = [_expert(model, 30 + i) for i in range(3)] + [None]
    for number, expert in enumerate(experts[:3], start=1):
        _put(engine, model, number, expert)
    asked = [[5 + i, *range(6, 125)] for i in range(24)]
    whole = replace(GREEDY, extra={"ignore_eos": True})
    done = engine.generate(asked, whole, [0] * 24, adapters=[(1 + i) % 4 for i in range(24)])
    assert put_out
    _check_tokens(model, [experts[(i + 1) % 4 - 1] for i in range(24)], asked, done)


def _noting(method: Any, calls: list[Any]) -> Any:
    def noted(*args: Any, **named: Any) -> Any:
        calls.append(args)
        return method(*args, **named)

    return noted


def test_what_does_not_suit_is_said_and_nothing_changes(
    engine: ColocatedVLLMGenerator, model: PeftModel, prompts: list[list[int]]
) -> None:
    good = _expert(model, 7)
    _put(engine, model, 3, good)
    path, m = next(iter(active_multipliers(model).items()))
    for bad, message in [
        ({path: m * float("nan")}, "not finite"),
        ({path: m[:-1]}, "has rank"),
        ({"model.layers.0.self_attn.k_proj": m}, "does not serve"),
    ]:
        with pytest.raises(SVFError, match=message):
            engine.adapters.put(3, bad)
        with pytest.raises(SVFError, match=message):
            engine.adapters.put(400, bad)
    with pytest.raises(SVFError, match="no adapter 400"):
        engine.generate(prompts[:1], GREEDY, [0], adapters=[400])
    done = engine.generate(prompts, GREEDY, [0] * 12, adapters=[3] * 12)
    _check_tokens(model, [good] * 12, prompts, done)


def test_scores_of_given_tokens_are_those_of_each_expert(
    engine: ColocatedVLLMGenerator, model: PeftModel, prompts: list[list[int]]
) -> None:
    experts = {1: _expert(model, 1), 2: _expert(model, 2)}
    for number, expert in experts.items():
        _put(engine, model, number, expert)
    given = [prompt[::-1][:5] for prompt in prompts]
    numbers = [1, 2] * 6
    scores = engine.loglikelihood(prompts, given, adapters=numbers)
    for number, prompt, tokens, score in zip(numbers, prompts, given, scores, strict=True):
        _become(model, experts[number])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(score), expected, rtol=0, atol=3e-4)


@pytest.mark.parametrize(
    ("dtype", "eager"), [(torch.bfloat16, True), pytest.param(torch.float32, False, marks=pytest.mark.slow)]
)
def test_in_bf16_and_compiled_too(dtype: torch.dtype, eager: bool, prompts: list[list[int]]) -> None:
    model = _model(dtype=dtype)
    engine = _engine(model, enforce_eager=eager)
    experts = [None, *(_expert(model, seed) for seed in range(3))]
    for number in (1, 2, 3):
        _put(engine, model, number, experts[number])
    asked = [(prompt, number) for prompt in prompts for number in range(4)]
    numbers = [number for _, number in asked]
    done = engine.generate([prompt for prompt, _ in asked], GREEDY, [0] * len(asked), adapters=numbers)
    _check_tokens(model, [experts[number] for number in numbers], [prompt for prompt, _ in asked], done)


def test_a_model_of_transformers_own_class_too(tmp_path: Path) -> None:
    """vLLM runs it with a batch of one, of all tokens."""
    sizes = {**SIZES, "hidden_size": 128, "num_hidden_layers": 4, "max_position_embeddings": 8192}
    config = SmolLM3Config(**sizes, initializer_range=0.2)
    torch.manual_seed(0)
    SmolLM3ForCausalLM(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model_path()).save_pretrained(tmp_path)
    model = _model(str(tmp_path))
    engine = _start(str(tmp_path), SharedWeights.of(model))
    prompts = [[5 + i, 9, 20 + i] for i in range(6)]
    experts = [None, _expert(model, 1), _expert(model, 2)]
    for number, expert in enumerate(experts[1:], start=1):
        _put(engine, model, number, expert)
    done = engine.generate(prompts, GREEDY, [0] * 6, adapters=[0, 1, 2] * 2)
    _check_tokens(model, experts * 2, prompts, done)


def test_a_matrix_that_vllm_has_not_is_named(model: PeftModel) -> None:
    factors = SharedWeights.of(model).factors
    some = next(iter(factors.values()))
    with pytest.raises(CannotServeFactors, match=r"no linear layer model\.layers\.9"):
        _start(str(model_path()), SharedWeights({**factors, "model.layers.9.mlp.gate_proj": some}, {}))


def test_factors_of_another_model_are_refused(model: PeftModel) -> None:
    factors = SharedWeights.of(model).factors
    name, some = next(iter(factors.items()))
    other = SVFFactors(Factors(some.U[:-1], some.s, some.Vt), sharded=False)
    with pytest.raises(SVFError, match=f"{name} is .* for vLLM, and by its factors"):
        _start(str(model_path()), SharedWeights({**factors, name: other}, {}))
    with pytest.raises(SVFError, match=r"in torch\.bfloat16 for vLLM, and by its factors .* in torch\.float32"):
        _start(str(model_path()), SharedWeights(factors, {}), dtype=torch.bfloat16)


def test_weights_of_files_are_compared_at_whole_rows() -> None:
    """Engines load with bf16 as the default type, which has no 699."""
    from svf_rl.generation.vllm.factored.linear import _Part

    weight = torch.randn(700, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    factors = thin_svd(weight).to(torch.bfloat16)
    part = _Part(factors.U, slice(0, 8), SVFFactors(factors, sharded=False))
    torch.set_default_dtype(torch.bfloat16)
    try:
        part.load(weight)
        with pytest.raises(CannotServeFactors, match="rows of a matrix in another order"):
            part.load(weight.flip(0))
    finally:
        torch.set_default_dtype(torch.float32)


def test_an_engine_and_its_model_hold_every_weight_once(engine: ColocatedVLLMGenerator, model: PeftModel) -> None:
    parts = [part.weight for module in engine.model.modules() for part in getattr(module, "svf_parts", ())]
    places = {weight.untyped_storage().data_ptr() for weight in (*parts, *engine.model.parameters())}
    shared = SharedWeights.of(model).parameters
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in shared} == {
        "embed_tokens", "k_proj", "input_layernorm", "post_attention_layernorm", "norm",
    }  # fmt: skip
    assert all(p.untyped_storage().data_ptr() in places for p in shared.values())
    assert all(p.is_leaf and not p.requires_grad for p in shared.values())


def test_a_weight_that_was_changed_in_memory_is_not_replaced(prompts: list[list[int]]) -> None:
    model = _model()
    norm = model.get_base_model().model.norm.weight
    with torch.no_grad():
        norm *= 1.5
    expected = norm.clone()
    engine = _start(str(model_path()), SharedWeights.of(model))
    assert torch.equal(norm, expected)
    assert not torch.equal(engine.model.model.norm.weight, expected)


def test_another_vllm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from svf_rl.generation.vllm.factored import patches

    monkeypatch.delattr("vllm.v1.worker.lora_model_runner_mixin.LoRAModelRunnerMixin.load_lora_model")
    with pytest.raises(SVFError, match=r"vLLM .* is not known to serve factors \(load_lora_model"):
        patches.patch_adapters()
