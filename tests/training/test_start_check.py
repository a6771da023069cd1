"""Before the first update a run finds out whether its model and its generator say what the loss computes."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import SIZES, read_metrics, refusal
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from svf_rl.generation import SyncReport
from svf_rl.generation.transformers_generator import TransformersGenerator
from svf_rl.svf import SVFConfig
from svf_rl.training import start_check
from svf_rl.training import trainer as trainer_module

Make = Callable[..., Any]


def build(name: str, tokenizer: Any, **more: Any) -> PreTrainedModel:
    """A tiny random model with opinions of its own, for the tokenizer."""
    sizes = {**SIZES, "max_position_embeddings": 128, "vocab_size": len(tokenizer), "initializer_range": 0.2, **more}
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes)).eval()


HEADS_OF_THEIR_OWN = {
    "modernbert-decoder": (r".*\.(q_proj|v_proj)", {"head_dim": 8}),  # a layer and a norm before the output layer
    "roberta": (r".*\.(query|value)", {"is_decoder": True}),
}


@pytest.mark.parametrize("name", HEADS_OF_THEIR_OWN)
def test_a_model_whose_logits_are_not_hidden_states_times_head_is_refused(
    name: str, make_trainer: Make, tokenizer: Any
) -> None:
    targets, more = HEADS_OF_THEIR_OWN[name]
    line = refusal(
        make_trainer,
        build(name, tokenizer, **more),
        peft_config=SVFConfig(target_modules=targets, task_type="CAUSAL_LM"),
        use_vllm=False,
        max_steps=1,
    )
    assert "hidden states times output layer" in line
    assert "nats a token off" in line


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("llama", {}),
        ("cohere", {"logit_scale": 0.3}),
        ("granite", {"logits_scaling": 3.0}),
        ("gemma2", {"head_dim": 8, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.0}),
        ("recurrent_gemma", {"num_hidden_layers": 3, "logits_soft_cap": 1.0, "lru_width": 32}),
        ("inkling_text", {"head_dim": 8, "logits_mup_width_multiplier": 4.0}),
        ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "logit_scale": 0.5}),
        ("llama4_text", {"head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2, "num_experts_per_tok": 1}),
        ("qwen3_moe", {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_models_do_to_their_logits_is_done_in_the_loss_too(
    name: str, more: dict[str, Any], make_trainer: Make, tokenizer: Any
) -> None:
    targets = r".*\.(up_proj|down_proj)" if name == "mpt" else r".*\.(q_proj|v_proj)"
    make_trainer(
        build(name, tokenizer, **more),
        peft_config=SVFConfig(target_modules=targets, task_type="CAUSAL_LM"),
        use_vllm=False,
    )


def test_the_soft_cap_of_the_attention_is_kept(make_trainer: Make, tokenizer: Any) -> None:
    """PyTorch's own attention would leave it out."""
    model = build("gemma2", tokenizer, head_dim=8, attn_logit_softcapping=1.0)
    assert model.config._attn_implementation == "sdpa"
    ids = torch.arange(5, 25)[None]
    without = model(ids).logits
    make_trainer(model, use_vllm=False)
    assert model.config._attn_implementation == "eager"
    assert (model(ids).logits - without).abs().max() > 0.01


class Deaf(TransformersGenerator):
    """Answers as the model was when the generator was made."""

    def __init__(self, model: Any, **options: Any):
        super().__init__(copy.deepcopy(model), **options)
        del self._model.get_base_model().forward  # the trainer's, which would call the model it is a copy of

    def sync(self, model: Any, everything: bool = False) -> SyncReport:
        return SyncReport()


@pytest.mark.parametrize(
    "config",
    [
        SVFConfig(target_modules="mlp", task_type="CAUSAL_LM"),
        SVFConfig(target_modules="mlp", parameterization="sigmoid", task_type="CAUSAL_LM"),
        SVFConfig(target_modules="mlp", core="band:1", task_type="CAUSAL_LM"),
        SVFConfig(target_modules="mlp", core="block:8", task_type="CAUSAL_LM"),
        SVFConfig(target_modules="mlp", core="projected:13", task_type="CAUSAL_LM"),
        LoraConfig(target_modules=["up_proj", "down_proj"], task_type="CAUSAL_LM"),
    ],
    ids=["svf", "sigmoid", "band", "block", "projected", "lora"],
)
def test_a_generator_that_gets_no_weights_is_found_though_they_change_nothing_yet(
    config: Any, make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deaf(model: Any, args: Any, device: str, eos_token_ids: list[int], tokenizer: Any) -> Deaf:
        return Deaf(model, eos_token_ids=eos_token_ids, pad_token_id=tokenizer.pad_token_id)

    monkeypatch.setattr(trainer_module, "build_generator", deaf)
    line = refusal(make_trainer, peft_config=config, use_vllm=False)
    assert "the generator does not answer as" in line


@pytest.mark.parametrize(
    "config",
    [
        *(SVFConfig(target_modules="mlp", core=core) for core in ("top:8", "projected:13", "band:1", "block:8")),
        SVFConfig(target_modules="mlp", parameterization="sigmoid"),
        LoraConfig(target_modules=["up_proj", "down_proj"]),
    ],
    ids=["top", "projected", "band", "block", "sigmoid", "lora"],
)
def test_near_the_base_model_trained_values_are_moved_as_they_are_at_it(config: Any, tokenizer: Any) -> None:
    model = get_peft_model(build("llama", tokenizer), config)
    ids = [[5, 6, 7]]
    changes = []
    with torch.no_grad():
        for size in (0.0, 0.01):
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and ".lora_A." not in name:
                    parameter += size * torch.randn(parameter.shape)
            start = start_check._model_logps(model, ids, ids)
            changes.append(start_check._change(model, 0.1, ids, ids, start))
            assert start_check._model_logps(model, ids, ids) == start
    assert changes[1] > 0.5 * changes[0] > 0.002


def test_trained_values_are_moved_by_no_more_than_what_a_model_survives(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dense core that is off by a fifth everywhere makes the model babble, and in bfloat16 its logits are rounded to
    others in each order of sums."""
    changes: list[float] = []
    monkeypatch.setattr(start_check, "_check_generator", lambda *arguments: changes.append(arguments[-1]))
    monkeypatch.setattr(start_check, "_MOST", 0.5)  # tiny models say little that is sensible anyway
    config = SVFConfig(target_modules="mlp", core="block:32", task_type="CAUSAL_LM")
    for moves in ((0.2,), start_check._MOVES):
        monkeypatch.setattr(start_check, "_MOVES", moves)
        make_trainer(peft_config=config, use_vllm=False, max_steps=1).train()
    first, chosen = changes
    assert 0.1 < chosen <= 0.5 < first


def test_the_check_changes_no_bit_of_a_run(make_trainer: Make, z_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> tuple[Any, Any, Any]:
        torch.manual_seed(0)
        trainer = make_trainer(use_vllm=False, max_steps=2, eval_items=4, beta=0.1)
        start = z_of(trainer)
        trainer.train()
        return start, z_of(trainer), read_metrics(Path(trainer.args.output_dir))

    checked = run()
    monkeypatch.setattr(trainer_module, "check_start", lambda *_, **__: None)
    unchecked = run()
    for ours, theirs in zip(checked[:2], unchecked[:2], strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert checked[2] == unchecked[2]
