"""Hidden states, reference and digest, on the models that train."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from svf_rl.svf import SVFConfig
from svf_rl.training.policy import (
    add_hidden_states_forward,
    hidden_states,
    multiplier_statistics,
    output_layer,
    reference,
    switch_off_dropout,
    trainable_digest,
)
from svf_rl.training.zero import trained_alone

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "initializer_range": 0.2,
}  # fmt: skip


def _models(tiny_llama: Callable[..., Any]) -> dict[str, Callable[[], Any]]:
    return {
        "llama": tiny_llama,
        "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=5.0)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL)),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=32, initializer_range=0.2)
        ),
    }


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3", "gpt2"])
def test_hidden_states_make_the_models_own_logits_whatever_the_padding(
    tiny_llama: Callable[..., Any], name: str
) -> None:
    from svf_rl.losses.token_logprobs import LogitTransform

    torch.manual_seed(0)
    base = _models(tiny_llama)[name]().eval()
    model = get_peft_model(base, SVFConfig(init="random", init_std=0.2, task_type="CAUSAL_LM")).eval()
    prompts, completions = [[5, 6, 7, 8, 9], [10, 11], [12]], [[20, 21], [22, 23, 24], [25]]
    with torch.no_grad():
        alone = [
            model(input_ids=torch.tensor([p + c])).logits[0, len(p) - 1 : -1].float()
            for p, c in zip(prompts, completions, strict=True)
        ]
        add_hidden_states_forward(base)
        rows = list(zip(prompts, completions, strict=True))
        ids = torch.tensor([[0] * (5 - len(p)) + p + c + [0] * (3 - len(c)) for p, c in rows])
        mask = torch.tensor([[0] * (5 - len(p)) + [1] * len(p + c) + [0] * (3 - len(c)) for p, c in rows])
        states = hidden_states(model, ids, mask, 3)
        weight, bias = output_layer(model)
        logits = LogitTransform.of(base.config, 1.0)(torch.nn.functional.linear(states, weight, bias))
    assert states.shape[:2] == (3, 3)
    for row, expected in zip(logits, alone, strict=True):
        torch.testing.assert_close(row[: len(expected)], expected, rtol=1e-4, atol=1e-4)


def test_the_ordinary_call_stays_as_it_was(tiny_llama: Callable[..., Any]) -> None:
    import inspect

    base, ids = tiny_llama(), torch.tensor([[3, 4, 5]])
    before, signature = base(ids).logits, inspect.signature(base.forward)
    add_hidden_states_forward(base)
    assert torch.equal(base(ids).logits, before)
    assert inspect.signature(base.forward) == signature
    assert base.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, 6)


def test_a_copy_is_a_model_of_its_own(tiny_llama: Callable[..., Any]) -> None:
    base, ids = tiny_llama(), torch.tensor([[3, 4, 5]])
    for _ in range(2):  # as by two trainers, one after the other
        add_hidden_states_forward(base)
    before, copied = base(ids).logits, copy.deepcopy(base)
    with torch.no_grad():
        copied.get_input_embeddings().weight.mul_(2)
    assert not torch.allclose(copied(ids).logits, before)
    assert not torch.allclose(copied(ids, hidden_states_only=True), base(ids, hidden_states_only=True))
    assert torch.equal(base(ids).logits, before)


@pytest.mark.parametrize("adapter", ["svf", "lora"])
def test_the_reference_is_the_model_before_training(tiny_llama: Callable[..., Any], adapter: str) -> None:
    base, ids = tiny_llama(), torch.tensor([[3, 4, 5, 6]])
    untrained = base(ids).logits.detach()
    config = (
        SVFConfig(modules_to_save=["norm"], task_type="CAUSAL_LM")
        if adapter == "svf"
        else LoraConfig(target_modules=["up_proj"], modules_to_save=["norm"], task_type="CAUSAL_LM")
    )
    model = get_peft_model(base, config).eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter += 0.3
    moved = model(input_ids=ids).logits.detach()
    assert (moved - untrained).abs().max() > 0.1
    with reference(model):
        torch.testing.assert_close(model(input_ids=ids).logits, untrained, rtol=1e-4, atol=1e-4)
    assert torch.equal(model(input_ids=ids).logits, moved)
    assert all(p.requires_grad for p in trained)


def test_the_digest_follows_what_is_trained_and_nothing_else(tiny_llama: Callable[..., Any]) -> None:
    model = get_peft_model(tiny_llama(), SVFConfig(task_type="CAUSAL_LM"))
    first = trainable_digest(model)
    z = next(p for p in model.parameters() if p.requires_grad)
    frozen = next(p for p in model.parameters() if not p.requires_grad)
    with torch.no_grad():
        frozen += 1
        assert trainable_digest(model) == first
        z[0] = torch.nextafter(z[0], torch.tensor(2.0))
    assert trainable_digest(model) != first
    with torch.no_grad():
        z[0] = 1.0
    assert trainable_digest(model) == first


def test_statistics_are_those_of_the_multiplier_by_kind_of_module(tiny_llama: Callable[..., Any]) -> None:
    config = SVFConfig(
        target_modules="mlp+attention", parameterization="sigmoid", init="random", init_std=0.5, task_type="CAUSAL_LM"
    )
    model = get_peft_model(tiny_llama(), config)
    statistics = multiplier_statistics(model)
    kinds = {"gate_proj", "up_proj", "down_proj", "q_proj", "v_proj"}
    assert set(statistics) == {f"z/{kind}/{value}" for kind in kinds for value in ("mean", "std", "min", "max")}
    z = [p for n, p in model.named_parameters() if "up_proj" in n and p.requires_grad]
    m = 2 * torch.cat(z).sigmoid()
    assert statistics["z/up_proj/mean"] == pytest.approx(m.mean().item())
    assert statistics["z/up_proj/std"] == pytest.approx(m.std(correction=0).item())
    assert statistics["z/up_proj/min"] == m.min().item()
    assert statistics["z/up_proj/max"] == m.max().item()


def test_a_frozen_weight_goes_under_none_of_its_names(tiny_llama: Callable[..., Any]) -> None:
    model = get_peft_model(tiny_llama(tied=True), SVFConfig())
    whole = set(model.state_dict())
    assert {name.rpartition(".model.")[2] for name in whole} >= {"embed_tokens.weight"}
    assert any("lm_head" in name for name in whole)
    with trained_alone(model):
        kept = set(model.state_dict())
    assert kept == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("svf_z" in name for name in kept)
    assert set(model.state_dict()) == whole


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_a_model_in_training_drops_nothing_of_its_own(kind: str, attention: str) -> None:
    """GPT-2 has layers for it, OPT its shares alone; what an adapter drops is the user's choice."""
    torch.manual_seed(0)
    if kind == "gpt2":
        base: Any = GPT2LMHeadModel._from_config(
            GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=32), attn_implementation=attention
        )
    else:
        config = OPTConfig(vocab_size=64, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2,
                           word_embed_proj_dim=32, max_position_embeddings=32, attention_dropout=0.1)  # fmt: skip
        base = OPTForCausalLM._from_config(config, attn_implementation=attention)
    targets = ["c_fc"] if kind == "gpt2" else ["fc1"]
    model = get_peft_model(base, LoraConfig(target_modules=targets, lora_dropout=0.5, task_type="CAUSAL_LM"))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = model.eval()(ids).logits
        assert not torch.equal(model.train()(ids).logits, expected)
        switch_off_dropout(model.get_base_model())
        assert torch.equal(model(ids).logits, expected)  # LoRA's B is 0
    assert {m.p for n, m in model.named_modules() if n.endswith("lora_dropout.default")} == {0.5}
