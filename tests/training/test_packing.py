"""Packed rows give the hidden states and gradients of padded ones, or the run says that it pads."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import SIZES, free_port, move
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from svf_rl.episodes.rollout import Rollout
from svf_rl.svf import SVFConfig
from svf_rl.training.packing import _common_beginning, counted, group_prompts, hindrance, pack
from svf_rl.training.policy import add_hidden_states_forward, arrange

Make = Callable[..., Any]

MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
PACKED: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen2": {}, "qwen3": {"head_dim": 8}, "mistral": {"sliding_window": None}, "gemma": {"head_dim": 8},
    "gpt2": {"n_positions": 20}, "gpt_neox": {}, "phi": {}, "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "gptj": {"rotary_dim": 4}, "qwen2_moe": {**MIXTURE, "shared_expert_intermediate_size": 16},
    "mixtral": {"num_local_experts": 4},
}  # fmt: skip
PADDED: dict[str, tuple[dict[str, Any], str]] = {
    "gemma3_text": ({"head_dim": 8, "sliding_window": 8}, "layers of sliding_attention"),
    "mistral": ({"sliding_window": 8}, "a sliding_window"),
    "gpt_neo": ({"num_heads": 4, "num_layers": 2, "attention_types": [[["global", "local"], 1]]}, "a window_size"),
    "recurrent_gemma": ({"num_hidden_layers": 3, "lru_width": 32}, "recurrent layers"),
    "jamba": ({"mamba_dt_rank": 4, "attn_layer_offset": 1, "attn_layer_period": 2}, "recurrent layers"),
    "bloom": ({}, "no mask of tokens by tokens"),
    "mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}, "off by"),
}  # fmt: skip
TARGETS = {"gpt_neo": "c_fc", "jamba": "layers.0.feed_forward.up_proj", "bloom": "dense_h_to_4h", "mpt": "up_proj"}


def build(name: str, vocabulary: int = 64, **more: Any) -> Any:
    """A tiny random model with opinions of its own."""
    torch.manual_seed(3)
    sizes = {**SIZES, "vocab_size": vocabulary, "initializer_range": 0.2, **more}
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes))
    return base.eval()


def adapted(base: Any, config: Any = None) -> Any:
    add_hidden_states_forward(base)
    model = get_peft_model(base, config or LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    move(model, 0, 0.1)
    return model.eval()


def batch_of(*rows: tuple[list[int], list[int]]) -> dict[str, Tensor]:
    prompts, completions = [prompt for prompt, _ in rows], [completion for _, completion in rows]
    texts = [""] * len(rows)
    return Rollout(texts, prompts, completions, texts, [True] * len(rows)).tensors(0, torch.device("cpu"))


def mixed_batch() -> dict[str, Tensor]:
    """Three prompts, their completions of different lengths and not side by side, one of them left out."""
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, 64, (count,), generator=draw).tolist()

    a, b, c = tokens(11), tokens(4), tokens(7)
    batch = batch_of(
        (a, tokens(9)), (b, tokens(5)), (a, tokens(1)), (c, tokens(12)), (a, tokens(6)), (b, tokens(9)), (a, tokens(3))
    )
    batch["completion_mask"][4] = 0
    return batch


def batch_with_a_beginning() -> dict[str, Tensor]:
    """Three prompts that begin alike, one of them with no token more than the beginning of the others."""
    draw = torch.Generator().manual_seed(1)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, 64, (count,), generator=draw).tolist()

    beginning = tokens(8)
    a, b, c = [*beginning, *tokens(2)], [*beginning, *tokens(1)], beginning
    return batch_of((a, tokens(3)), (b, tokens(4)), (a, tokens(1)), (c, tokens(5)), (b, tokens(2)), (a, tokens(4)))


def batch_with_tools() -> dict[str, Tensor]:
    """[`mixed_batch`] where tools have written a part: in the middle, at the start, at the end, all and nothing."""
    batch = mixed_batch()
    mask = batch["tool_mask"] = torch.ones_like(batch["completion_mask"])
    mask[0, 3:6] = 0
    mask[1, :2] = 0
    mask[3, [2, 5, 6, 9, 10, 11]] = 0
    mask[5, 4:] = 0
    mask[6] = 0
    return batch


def outcome(model: Any, batch: dict[str, Tensor], packing: str) -> tuple[Tensor, Tensor]:
    """Hidden states, and the gradient of a fixed function of them."""
    model.zero_grad()
    hidden = arrange(batch, packing, model)(model)
    (hidden * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(5))).sum().backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None]
    return hidden.detach(), torch.cat(gradients)


def assert_same(model: Any, batch: dict[str, Tensor], packing: str) -> None:
    expected, found = outcome(model, batch, "none"), outcome(model, batch, packing)
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 1e-2
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("packing", ["prompt", "padding_free"])
@pytest.mark.parametrize("name", PACKED)
def test_states_and_gradients_are_those_of_padded_rows(name: str, packing: str) -> None:
    model, batch = adapted(build(name, **PACKED[name])), mixed_batch()
    packed = pack(batch, packing == "prompt", model)
    assert packed.attention is not None
    assert packed.input_ids.numel() < 0.7 * len(batch["prompt_ids"]) * (11 + 12)
    assert_same(model, batch, packing)


@pytest.mark.parametrize("packing", ["prompt", "padding_free"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_what_tools_wrote_is_read_and_does_not_count(name: str, packing: str) -> None:
    model, batch = adapted(build(name, **PACKED[name])), batch_with_tools()
    assert_same(model, batch, packing)
    counts = [6, 3, 1, 6, 0, 4, 0]
    assert counted(batch).sum(1).tolist() == counts
    hidden = arrange(batch, packing, model)(model)
    alone = []
    for row, count in enumerate(counts):  # each completion by itself, all of its tokens read
        one = {key: values[row : row + 1] for key, values in batch.items()}
        del one["tool_mask"]
        states = arrange(one, "none", model)(model)
        kept = batch["tool_mask"][row, : len(states)].bool()
        alone.append(states[kept])
        assert len(alone[-1]) == count
    assert (hidden - torch.cat(alone)).abs().max() <= 1e-5 * hidden.abs().max()
    other = {**batch, "completion_ids": batch["completion_ids"].clone()}
    other["completion_ids"][0, 4] = 63 - other["completion_ids"][0, 4]
    changed = (arrange(other, packing, model)(model) - hidden).abs().amax(1) > 1e-4
    assert changed.tolist() == [False] * 3 + [True] * 3 + [False] * 14  # what comes after it in its own completion


def test_a_row_ends_with_the_last_token_that_counts() -> None:
    model = adapted(build("llama"))
    batch = batch_of(([5, 6], [7, 8, 9, 10, 11]))
    batch["tool_mask"] = torch.tensor([[1, 0, 1, 0, 0]])
    assert pack(batch, True, model).input_ids.tolist() == [[5, 6, 7, 8]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_every_type_and_kind_of_attention(attention: str, dtype: torch.dtype) -> None:
    model, batch = adapted(build("llama", attn_implementation=attention).to(dtype)), mixed_batch()
    with torch.no_grad():
        expected, found = (arrange(batch, packing, model)(model).float() for packing in ("none", "prompt"))
    assert (found - expected).norm() <= (1e-5 if dtype == torch.float32 else 0.02) * expected.norm()


def test_with_svf_and_gradient_checkpointing() -> None:
    config = SVFConfig(target_modules="mlp+attention", init="random", task_type="CAUSAL_LM")
    model, batch = adapted(build("llama"), config), mixed_batch()
    expected = outcome(model, batch, "none")
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for one, other in zip(outcome(model, batch, "prompt"), expected, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


def test_one_sequence_in_a_row_needs_no_mask() -> None:
    model = adapted(build("llama"))
    batch = batch_of(([5, 6, 7], [8, 9, 10]), ([11, 12], [13, 14, 15]))
    for packing in ("prompt", "padding_free"):
        assert pack(batch, packing == "prompt", model).attention is None
        assert_same(model, batch, packing)


def test_a_prompt_is_read_once_and_short_rows_share_one() -> None:
    model = adapted(build("llama"))
    prompt = list(range(3, 23))
    shared = batch_of(*((prompt, [30 + i, 40 + i]) for i in range(4)))
    assert pack(shared, True, model).input_ids.shape == (1, 20 + 4)  # no last token predicts anything
    assert pack(shared, False, model).input_ids.shape == (4, 21)
    short = batch_of((prompt, [30, 31]), (prompt[:9], [32, 33]), (prompt[5:14], [34, 35]))
    assert pack(short, False, model).input_ids.shape == (2, 21)


@pytest.mark.parametrize("name", PACKED)
def test_what_all_prompts_begin_with_is_read_once(name: str) -> None:
    model, batch = adapted(build(name, **PACKED[name])), batch_with_a_beginning()
    # 7 tokens that all have; 3, 2 and 1 of their own; and completions without their last tokens
    assert pack(batch, True, model).input_ids.shape == (1, 7 + 3 + 2 + 1 + (2 + 3 + 0 + 4 + 1 + 3))
    assert_same(model, batch, "prompt")


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ([[1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 2, 9]], [1, 2]),
        ([[1, 2, 3], [1, 2, 3, 4]], [1, 2]),  # the first keeps a token
        ([[1, 2], [1], [1, 2, 3]], []),
        ([[1, 2], [2, 1]], []),
        ([[1, 2, 3]], []),
    ],
)
def test_each_prompt_keeps_a_token_of_its_own(prompts: list[list[int]], expected: list[int]) -> None:
    assert _common_beginning(prompts) == expected


def test_a_beginning_of_long_pieces_is_read_again_where_that_costs_less() -> None:
    """One row of all would pay for the attention of each completion to all others."""
    model = adapted(build("llama"))
    batch = batch_of(*(([5, 6, 7, end], list(range(3, 63)) * 20) for end in (8, 9, 10)))
    assert pack(batch, True, model).input_ids.shape == (3, 4 + 1199)


def test_a_beginning_with_tools_in_every_type_and_kind_of_attention() -> None:
    batch = batch_with_a_beginning()
    batch["tool_mask"] = torch.ones_like(batch["completion_mask"])
    batch["tool_mask"][1, 1:3] = 0
    for attention in ("sdpa", "eager"):
        assert_same(adapted(build("llama", attn_implementation=attention)), batch, "prompt")


def test_long_completions_do_not_pay_for_each_others_attention() -> None:
    """Beside a long completion its prompt costs nothing, and a row of all of them the square of its length."""
    model = adapted(build("llama"))
    batch = batch_of(*(([5, 6, 7], list(range(3, 63)) * 40) for _ in range(4)))
    assert pack(batch, True, model).input_ids.shape == (4, 3 + 2399)


def test_uneven_groups_make_no_more_than_padded_rows() -> None:
    """Two completions of one prompt, one of another: a row for both would be filled up with nothing for the other."""
    model = adapted(build("llama"))
    batch = batch_of(([5], list(range(3, 23))), ([6], list(range(3, 23))), ([5], list(range(3, 23))))
    assert pack(batch, True, model).input_ids.shape == (3, 20)
    assert_same(model, batch, "prompt")


def test_where_nothing_counts_the_pass_is_still_made() -> None:
    """Other processes wait for its collectives."""
    model, batch = adapted(build("llama")), mixed_batch()
    batch["completion_mask"].zero_()
    hidden = arrange(batch, "prompt", model)(model)
    assert hidden.shape == (0, 32)
    hidden.sum().backward()
    assert all(not p.grad.any() for p in model.parameters() if p.requires_grad)


def trained(make_trainer: Make, z_of: Make, scripted: Make, **settings: Any) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and `z` of two updates, in micro-batches that cut the prompts' groups."""
    config = SVFConfig(init="random", task_type="CAUSAL_LM")
    trainer = make_trainer(
        generator=scripted(), peft_config=config, max_steps=2, per_device_train_batch_size=6,
        gradient_accumulation_steps=2, **settings,
    )  # fmt: skip
    assert trainer.loss.packing == settings["train_packing"]
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line], z_of(trainer)


@pytest.mark.parametrize(
    "settings",
    [
        {"beta": 0.3},
        {"beta": 0.3, "kl_placement": "reward", "kl_type": "k1"},
        {"beta": 0.1, "mask_truncated_completions": True, "gradient_checkpointing": True, "loss_reduction": "mean"},
    ],
    ids=["exact KL", "KL in the reward", "left-out completions"],
)
def test_a_run_is_the_same(make_trainer: Make, z_of: Make, scripted: Make, settings: dict[str, Any]) -> None:
    expected_losses, expected = trained(make_trainer, z_of, scripted, train_packing="none", **settings)
    for packing in ("prompt", "padding_free"):
        losses, found = trained(make_trainer, z_of, scripted, train_packing=packing, **settings)
        assert losses == pytest.approx(expected_losses, abs=1e-5)
        for name, z in expected.items():
            torch.testing.assert_close(found[name], z, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("packing", "prompts"), [("prompt", 1), ("padding_free", 2)])
def test_completions_of_a_prompt_come_into_one_micro_batch(
    make_trainer: Make, scripted: Make, packing: str, prompts: int
) -> None:
    """Within a step; which completions are in one of several steps stays as it was drawn."""
    held = []
    for mode in (packing, "none"):
        trainer = make_trainer(
            generator=scripted(), train_packing=mode, per_device_train_batch_size=4, gradient_accumulation_steps=4,
            max_steps=1,
        )  # fmt: skip
        trainer.train()
        assert len(trainer._buffered_inputs) == 4
        held.append(trainer._buffered_inputs)
    distinct = [len({tuple(row) for row in part["prompt_ids"].tolist()}) for part in held[0]]
    assert min(distinct) >= prompts
    assert prompts > 1 or max(distinct) == 1

    def rows(parts: list[dict[str, Tensor]]) -> list[tuple[list[int], list[int], float]]:
        return sorted(
            (prompt.tolist(), completion.tolist(), advantage.item())
            for part in parts
            for prompt, completion, advantage in zip(
                part["prompt_ids"], part["completion_ids"], part["advantages"], strict=True
            )
        )

    assert rows(held[0]) == rows(held[1])


def test_steps_keep_their_rows() -> None:
    batch = {"prompt_ids": torch.tensor([[1], [2], [1], [2], [2], [1], [2], [1]]), "row": torch.arange(8)}
    parts = [{key: value[i : i + 2] for key, value in batch.items()} | {"all": torch.tensor(8)} for i in (0, 2, 4, 6)]
    grouped = group_prompts(parts, 2)
    assert [part["row"].tolist() for part in grouped] == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert all(part["all"] == 8 for part in grouped)


@pytest.mark.parametrize("name", PADDED)
def test_what_cannot_be_packed_is_padded_and_says_why(
    name: str, make_trainer: Make, tokenizer: Any, scripted: Make, caplog: pytest.LogCaptureFixture
) -> None:
    more, reason = PADDED[name]
    base = build(name, **{"max_position_embeddings": 128, **more}, vocabulary=len(tokenizer))
    config = SVFConfig(target_modules=rf".*\.({TARGETS.get(name, 'q_proj|v_proj')})", task_type="CAUSAL_LM")
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(base, peft_config=config, generator=scripted())
    said = [record.getMessage() for record in caplog.records if "train_packing" in record.getMessage()]
    assert len(said) == 1
    assert reason in said[0]
    assert "\n" not in said[0]
    assert trainer.loss.packing == "none"


def test_kernels_without_such_masks_are_left_alone() -> None:
    model = adapted(build("llama"))
    assert hindrance(model) is None
    model.get_base_model().set_attn_implementation("flex_attention")
    assert hindrance(model) == "flex_attention takes no mask of tokens by tokens"


def test_a_model_that_can_says_nothing(make_trainer: Make, scripted: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert make_trainer(generator=scripted()).loss.packing == "prompt"
    assert "train_packing" not in caplog.text


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(900)
@pytest.mark.parametrize("config", ["cpu_ddp", "cpu_zero2"])
def test_two_processes_train_the_same(repository: Path, tmp_path: Path, config: str) -> None:
    """With live rollouts; 6 sequences a micro-batch cut the groups of 4."""
    adapters, losses = [], []
    for packing in ("none", "prompt"):
        command = [
            sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{config}.yaml",
            "--main_process_port", str(free_port()), "svf_rl/train.py", "recipes/quickstart.yaml", "--use_vllm",
            "false", "--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no", "--train_items", "16",
            "--validation_items", "2", "--test_items", "2", "--max_completion_length", "16", "--report_to", "none",
            "--load_best_model_at_end", "false", "--per_device_train_batch_size", "6", "--beta", "0.1",
            "--gradient_accumulation_steps", "2", "--gradient_checkpointing", "true", "--train_packing", packing,
            "--output_dir", str(tmp_path / packing),
        ]  # fmt: skip
        own = {"ACCELERATE_USE_CPU": "true"} if config == "cpu_ddp" else {}
        environment = {**os.environ, **own, "PYTHONPATH": str(repository)}
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=400, env=environment)
        assert done.returncode == 0, done.stderr[-4000:]
        lines = map(json.loads, (tmp_path / packing / "metrics.jsonl").read_text().splitlines())
        losses.append([line["loss"] for line in lines if "loss" in line])
        adapters.append(load_file(tmp_path / packing / "adapter_model.safetensors"))
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    moved = 0.0
    for name, z in adapters[0].items():
        if "svf_z" in name:
            torch.testing.assert_close(adapters[1][name], z, rtol=0, atol=1e-5)
            moved = max(moved, (z - 1).abs().max().item())
    assert moved > 1e-3
