"""The memory plan: bytes by kind of tensor against arithmetic of their own, shares of a GPU, and what it advises."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import DeepseekV3Config, GPT2Config, LlamaConfig, MistralConfig, MixtralConfig, Qwen3Config

from svf_rl.errors import SVFError
from svf_rl.memory.advice import suggest
from svf_rl.memory.arithmetic import RESERVE, Run, TensorBytes, held_bytes, kv_cache, optimizer_bytes, parse_memory
from svf_rl.memory.model import kv_bytes_a_token
from svf_rl.memory.plan import Machine, MemoryPlan
from svf_rl.settings.recipe import load_recipe
from svf_rl.svf.merge import rebuild_bytes

GB = 10**9

LLAMA_8B = LlamaConfig(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
    vocab_size=128256, tie_word_embeddings=False, max_position_embeddings=8192,
)  # fmt: skip
LLAMA_70B = LlamaConfig(
    hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
    vocab_size=128256, tie_word_embeddings=False, max_position_embeddings=8192,
)  # fmt: skip
QWEN_06B = Qwen3Config(
    hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
    head_dim=128, vocab_size=151936, tie_word_embeddings=True,
)  # fmt: skip
TINY = LlamaConfig(
    hidden_size=64, intermediate_size=96, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=512, tie_word_embeddings=False, max_position_embeddings=2048,
)  # fmt: skip

SETTINGS = {
    "dtype": "bfloat16", "task": "quickstart", "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
    "num_generations": 4, "max_completion_length": 64, "vllm_max_model_length": 128, "use_vllm": True,
    "vllm_gpu_memory_utilization": 0.3, "optim": "adamw_torch", "gradient_checkpointing": True,
}  # fmt: skip


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., MemoryPlan]:
    """`plan(config, gpus=1, memory=80 GB, **settings)`: a plan from a folder that holds config.json alone."""

    def make(
        config: Any,
        gpus: int = 1,
        memory: int = 80 * GB,
        stage: int | None = None,
        prompt: int | None = None,
        **settings: Any,
    ) -> MemoryPlan:
        config.save_pretrained(tmp_path / "model")
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump({**SETTINGS, "model_name_or_path": str(tmp_path / "model"), **settings}))
        assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]
        return MemoryPlan(load_recipe(recipe, gpus=gpus), Machine(gpus, 1, memory), stage, prompt)

    return make


def llama_parameters(d: int, ff: int, layers: int, kv: int, vocabulary: int) -> int:
    """`kv`: rows of the key projection."""
    return layers * (2 * d * d + 2 * kv * d + 3 * d * ff + 2 * d) + 2 * vocabulary * d + d


def test_evolution_strategies_need_the_memory_of_inference(plan: Callable[..., MemoryPlan]) -> None:
    """However many sequences a step has: no pass is made of them."""
    evolving = {"objective": "evolution_strategies", "beta": 0.0}
    passes, none = plan(TINY), plan(TINY, **evolving, per_device_train_batch_size=512)
    assert passes.gpu(passes.run).activations > 0
    assert none.gpu(none.run).activations == 0
    held = none.gpu(none.run).held
    assert held == passes.gpu(passes.run).held
    assert none.gpu(none.run).update < passes.gpu(passes.run).update
    warmed = plan(TINY, **evolving, warm_up_steps=5)  # whose passes are of right answers
    assert warmed.gpu(warmed.run).activations > 0


@pytest.mark.parametrize(
    ("config", "parameters", "trained", "factor_values"),
    [
        (LLAMA_8B, llama_parameters(4096, 14336, 32, 1024, 128256), 393_216, 96 * 4096 * (4096 + 14336)),
        (LLAMA_70B, llama_parameters(8192, 28672, 80, 1024, 128256), 1_966_080, 240 * 8192 * (8192 + 28672)),
        (
            QWEN_06B,
            28 * (2 * 1024 * 2048 + 2 * 1024 * 1024 + 3 * 1024 * 3072 + 2 * 1024 + 2 * 128) + 151936 * 1024 + 1024,
            86_016,
            84 * 1024 * (1024 + 3072),
        ),
    ],
    ids=["Llama-3-8B", "Llama-3-70B", "Qwen3-0.6B"],
)
def test_tensor_bytes_are_exact(plan, config: Any, parameters: int, trained: int, factor_values: int) -> None:
    model = plan(config, gpus=8, memory=400 * GB, stage=0).model
    assert (model.base_parameters, model.trained_values) == (parameters, trained)
    tensors = model.tensors
    assert (tensors.base, tensors.factors) == (2 * parameters, 2 * factor_values)
    assert tensors.singular_values == tensors.trained == tensors.gradients == 4 * trained
    assert tensors.optimizer == 8 * trained  # Adam's two averages
    assert model.z_bytes == 4 * trained
    assert tensors.masks == 0


def test_kv_cache_is_what_the_share_leaves_beside_the_weights(plan) -> None:
    got = plan(LLAMA_8B, stage=0, vllm_weights="merged")
    cache = got.cache(got.run)
    assert cache.bytes == int(0.3 * 80 * GB) - 2 * llama_parameters(4096, 14336, 32, 1024, 128256)
    assert cache.bytes_a_token == 2 * 32 * 1024 * 2  # keys and values, layers, 8 heads of 128, bf16
    assert cache.tokens == cache.bytes // 131072
    assert cache.sequences(got.length) == cache.tokens // 128


def test_weights_shared_with_vllm_are_counted_once_and_those_of_adapted_matrices_are_on_no_gpu(plan) -> None:
    mlp = 2 * 32 * 3 * 4096 * 14336  # bytes of W in bf16
    shared, merged = (plan(LLAMA_8B, stage=0, vllm_weights=weights) for weights in (None, "merged"))
    others = 2 * llama_parameters(4096, 14336, 32, 1024, 128256) - mlp
    assert shared.gpu(shared.run).held["base weights"] == 0
    assert shared.cache(shared.run).bytes == int(0.3 * 80 * GB) - others
    assert merged.gpu(merged.run).update - shared.gpu(shared.run).update == others + mlp
    assert shared.gpu(shared.run).sync < merged.gpu(merged.run).sync - others - mlp
    asleep = plan(LLAMA_8B, stage=0, vllm_enable_sleep_mode=True)
    assert shared.gpu(shared.run).update - asleep.gpu(asleep.run).update == int(0.3 * 80 * GB) - others


@pytest.mark.parametrize(
    "settings",
    [{"vllm_tensor_parallel_size": 2, "gpus": 2}, {"stage": 3, "gpus": 2}, {"adapter": "lora"}, {"use_vllm": False},
     {"modules_to_save": ["lm_head"]}],
)  # fmt: skip
def test_what_cannot_be_shared_is_planned_twice(plan, settings: dict[str, Any]) -> None:
    got = plan(TINY, **settings)
    assert not got.run.shared
    assert got.gpu(got.run).held["base weights"] > 0


def test_the_recipe_of_8b_fits_a_card_of_24_gb(repository: Path, tmp_path: Path) -> None:
    LLAMA_8B.save_pretrained(tmp_path)
    overrides = [f"--model_name_or_path={tmp_path}", "--dtype=bfloat16"]
    recipe = load_recipe(repository / "recipes/llama3_math.yaml", overrides, gpus=1)
    got = MemoryPlan(recipe, Machine(1, 1, 24 * GB))
    assert got.problems(got.run) == []


def test_lora_has_no_factors_and_trains_its_own_matrices(plan) -> None:
    model = plan(LLAMA_8B, adapter="lora", lora_r=16, target_modules="mlp").model
    values = 32 * 3 * 16 * (4096 + 14336)
    assert (model.trained_values, model.tensors.trained, model.tensors.factors) == (values, 4 * values, 0)
    assert model.z_bytes is None


def test_a_saved_adapter_is_planned_as_it_is(plan, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "inference_mode": True})
    )
    own = {"lora_r": 2, "lora_alpha": 8, "lora_target_modules": ["q_proj"]}
    model = plan(TINY, adapter="lora", adapter_path=str(tmp_path), **own).model
    assert (len(model.shapes), model.trained_values) == (5, 5 * 2 * (64 + 64))


def test_a_combination_trains_its_weights_and_holds_masks(plan, tmp_path: Path) -> None:
    import torch
    from peft import get_peft_model
    from transformers import LlamaForCausalLM

    from svf_rl.svf import SVFConfig

    base = LlamaForCausalLM(TINY).to(torch.bfloat16)
    get_peft_model(base, SVFConfig(target_modules="mlp", task_type="CAUSAL_LM")).save_pretrained(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    experts = [str(tmp_path / "one"), str(tmp_path / "two")]
    model = plan(TINY, adapter="combination", experts=experts, alpha_scope="layer").model
    assert model.trained_values == 5 * 2  # one weight for each layer and expert
    assert model.tensors.trained == 4 * 10
    assert model.tensors.singular_values == 5 * 3 * 64 * 4
    assert model.tensors.masks == 2 * model.tensors.singular_values


@pytest.mark.parametrize("adapter", ["svf", "lora"])
def test_conv1d_and_tied_embeddings_of_gpt2(plan, adapter: str) -> None:
    config = GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=256, n_positions=256)
    targets = {"target_modules": "mlp"} if adapter == "svf" else {"lora_target_modules": ["c_fc"], "lora_r": 2}
    got = plan(config, adapter=adapter, **targets)
    layer = 12 * 64 * 64 + 13 * 64  # four projections with their biases, two norms
    assert got.model.base_parameters == 2 * layer + 256 * 64 + 256 * 64 + 2 * 64  # tied: one matrix of words
    assert got.model.trained_values == (2 * 2 * 64 if adapter == "svf" else 2 * 2 * (64 + 256))
    assert got.gpu(got.run).activations > 0


def test_experts_of_a_mixture_are_not_adapted_and_do_not_crash(plan) -> None:
    config = MixtralConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=256, num_local_experts=4, max_position_embeddings=256,
    )  # fmt: skip
    got = plan(config, target_modules="attention")
    assert got.model.trained_values == 2 * (64 + 32)  # queries and values
    assert got.gpu(got.run).activations is not None or any("not known" in note for note in got.model.notes)
    with pytest.raises(SVFError, match="mixture-of-experts"):
        plan(config, target_modules="mlp")


def test_a_quantized_checkpoint_is_planned_unquantized_and_said_to_be(plan) -> None:
    config = LlamaConfig(**{**TINY.to_dict(), "quantization_config": {"quant_method": "gptq", "bits": 4}})
    assert any("quantized" in note for note in plan(config).notes)


def test_whole_modules_are_trained_and_paid_for(plan) -> None:
    model = plan(TINY, modules_to_save=["lm_head"]).model
    assert model.trained_values == 5 * 3 * 64 + 512 * 64
    assert model.tensors.base == 2 * model.base_parameters  # the original stays
    assert model.tensors.trained == 4 * 5 * 3 * 64 + 2 * 512 * 64


# ---- shares of a GPU --------------------------------------------------------------------------------------------


def test_each_stage_shards_what_deepspeed_shards() -> None:
    tensors = TensorBytes(base=800, buffers=8, factors=400, singular_values=40, trained=40, gradients=40, optimizer=80)
    run = Run(4, 0, 1, 1, False, "transformers", 0.0, False, 1)
    by_stage = [held_bytes(tensors, replace(run, stage=stage)) for stage in (0, 1, 2, 3)]
    assert [part["base weights"] for part in by_stage] == [800, 800, 800, 200]
    assert [part["factors U, Vt"] for part in by_stage] == [400, 400, 400, 100]
    assert [part["gradients"] for part in by_stage] == [40, 40, 10, 10]
    assert [part["optimiser state"] for part in by_stage] == [80, 30, 30, 30]  # with its fp32 copy of the values
    assert {part["s, masks, buffers"] for part in by_stage} == {48}


def test_a_sleeping_engine_leaves_its_memory_to_the_update(plan) -> None:
    awake, asleep = (plan(TINY, stage=0, vllm_enable_sleep_mode=on, vllm_weights="merged") for on in (False, True))
    share = int(0.3 * 80 * GB)
    assert awake.gpu(awake.run).update - asleep.gpu(asleep.run).update == share
    assert awake.gpu(awake.run).rollout == asleep.gpu(asleep.run).rollout >= share + RESERVE


def test_tensor_parallel_engines_share_weights_and_heads() -> None:
    run = Run(2, 0, 1, 1, False, "colocated", 0.5, False, 2)
    cache = kv_cache(run, 1000, 300, 4)
    assert (cache.bytes, cache.bytes_a_token, cache.tokens) == (350, 4, 87)


def test_fewer_key_value_heads_than_gpus_are_repeated_on_each() -> None:
    whole = kv_bytes_a_token(LLAMA_8B, 2)
    assert whole is not None
    assert [kv_bytes_a_token(LLAMA_8B, 2, ranks) for ranks in (2, 8, 16)] == [whole // 2, whole // 8, whole // 8]
    latent = DeepseekV3Config(num_hidden_layers=2, kv_lora_rank=512, qk_rope_head_dim=64)
    assert kv_bytes_a_token(latent, 2, 8) == kv_bytes_a_token(latent, 2) == 2 * (512 + 64) * 2


@pytest.mark.parametrize(
    ("settings", "stages"),
    [({}, [0, 1, 2, 3]), ({"weight_decay": 0.1}, [0]), ({"use_vllm": False}, [0, 1, 2])],
)
def test_a_stage_that_training_refuses_is_not_planned(
    plan: Callable[..., MemoryPlan], settings: dict[str, Any], stages: list[int]
) -> None:
    got = plan(TINY, gpus=2, **settings)
    assert got.stages == stages
    for stage in {1, 2, 3} - set(stages):
        with pytest.raises(SVFError, match=r"weight_decay|use_vllm"):
            plan(TINY, gpus=2, stage=stage, **settings)
    assert "ZeRO-3" not in " ".join(suggest(plan(TINY, gpus=2, memory=10**6, **settings))) or 3 in stages


@pytest.mark.parametrize(
    ("name", "size", "known"),
    [
        ("adamw_torch", 800, True),
        ("sgd", 0, True),
        ("adamw_8bit", 200, True),
        ("lion_32bit", 400, True),
        ("new", 800, False),
    ],
)
def test_the_optimizer_decides_the_state(name: str, size: int, known: bool) -> None:
    assert optimizer_bytes(name, 400) == (size, known)


def test_rebuilding_takes_little_more_than_the_result() -> None:
    result = 4096 * 14336 * 2
    assert result < rebuild_bytes((14336, 4096), 2) < 1.5 * result


# ---- activations ------------------------------------------------------------------------------------------------


def test_layers_that_are_alike_need_not_all_be_traced(plan) -> None:
    model = plan(TINY, stage=0).model
    short = [model._trace_activations(4, 64, checkpointing) for checkpointing in (True, False)]
    assert model._layers is not None
    model._layers = None  # all five
    assert [model._trace_activations(4, 64, checkpointing) for checkpointing in (True, False)] == short
    assert short[0].saved < short[1].saved / 3


def test_activations_follow_the_batch_and_the_kl_term(plan) -> None:
    with_kl, without = plan(TINY, stage=0).model, plan(TINY, stage=0, beta=0.0).model
    one, two = (with_kl.activations(size, 64, False) for size in (4, 8))
    assert two.saved == pytest.approx(2 * one.saved, rel=0.02)
    assert without.activations(4, 64, False).reference < one.reference < one.saved  # it keeps nothing


def test_activations_are_those_of_the_rows_that_are_made(plan) -> None:
    """A prompt of 448 tokens once for eight completions of 64, in place of eight times."""
    settings = {"num_generations": 8, "max_completion_length": 64}
    packed, padded = (plan(TINY, stage=0, train_packing=packing, **settings).model for packing in ("prompt", "none"))
    share = (448 + 8 * 64) / (8 * (448 + 64))
    # the mask of tokens by tokens takes some, in a model as narrow as this one
    assert packed.activations(8, 448, False).saved < 1.5 * share * padded.activations(8, 448, False).saved
    assert packed.activations(1, 448, False).saved == pytest.approx(padded.activations(1, 448, False).saved, rel=0.02)
    windows = MistralConfig(**{**TINY.to_dict(), "model_type": "mistral", "sliding_window": 64})
    one, other = (plan(windows, stage=0, train_packing=each, **settings).model for each in ("prompt", "none"))
    assert one.activations(8, 448, False) == other.activations(8, 448, False)  # which cannot be packed


def test_activations_that_cannot_be_found_are_said_to_be_unknown(plan) -> None:
    config = LlamaConfig(**{**TINY.to_dict(), "num_attention_heads": 4, "num_key_value_heads": 3})  # builds, never runs
    got = plan(config)
    assert got.gpu(got.run).activations is None
    assert any("activations of llama are not known" in note for note in got.model.notes)


def test_what_the_trace_counts_is_what_autograd_keeps() -> None:
    """One linear layer and a ReLU: the input of the one and the output of the other."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from svf_rl.memory.trace import LiveBytes

    with FakeTensorMode():
        layer, x = torch.nn.Linear(8, 16, bias=False), torch.empty(4, 8)
        with LiveBytes([*layer.parameters(), x]) as live:
            y = torch.relu(layer(x))
            assert live.now == 4 * 16 * 4  # the product is gone, the ReLU's output is kept
            assert live.take_peak() == 2 * 4 * 16 * 4
            del y
            assert live.now == 0


# ---- the verdict ------------------------------------------------------------------------------------------------


def test_the_recipe_for_70b_fits_nodes_of_eight_gpus_with_zero3_alone(repository: Path, tmp_path: Path) -> None:
    LLAMA_70B.save_pretrained(tmp_path)
    path, overrides = repository / "recipes/llama3_70b_math.yaml", ["--model_name_or_path", str(tmp_path)]
    got = MemoryPlan(load_recipe(path, overrides, gpus=8), Machine(8, 1, 80 * GB))
    assert (got.run.stage, got.run.tensor_parallel, got.run.rollouts) == (3, 8, "colocated")
    assert got.problems(got.run) == []
    assert got.problems(replace(got.run, stage=2))
    assert got.problems(replace(got.run, tensor_parallel=1))
    # the generation batch of one vLLM on either of two nodes is that of one with half as many prompts a GPU
    assert got.fits(replace(got.run, processes=16))


def test_advice_is_found_by_trying(plan) -> None:
    got = plan(
        LLAMA_8B,
        gradient_checkpointing=False,
        train_packing="none",
        vllm_max_model_length=2048,
        vllm_gpu_memory_utilization=0.4,
    )
    assert "an update needs" in got.problems(got.run)[0]
    assert "gradient_checkpointing: true" in suggest(got)
    fits = plan(LLAMA_8B, gradient_checkpointing=True, vllm_max_model_length=2048, vllm_gpu_memory_utilization=0.4)
    assert fits.problems(fits.run) == []


def test_an_engine_that_cannot_hold_its_weights_is_given_more(plan) -> None:
    got = plan(LLAMA_8B, vllm_gpu_memory_utilization=0.05)
    assert "does not hold its weights" in got.problems(got.run)[0]
    assert any(line.startswith("vllm_gpu_memory_utilization: 0.") for line in suggest(got))


def test_no_advice_where_nothing_helps(plan) -> None:
    got = plan(LLAMA_70B, memory=10**9, use_vllm=False)
    assert got.problems(got.run)
    assert suggest(got) == []


def test_the_batch_is_that_of_the_planned_processes(plan) -> None:
    # 2 × 8 sequences are two groups of 8; two alone are none
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "num_generations": 8}
    assert plan(TINY, gpus=8, **settings).generated == 2
    with pytest.raises(SVFError, match="does not divide into groups"):
        plan(TINY, gpus=1, **settings)


@pytest.mark.parametrize(
    ("text", "size"), [("80GB", 80 * GB), ("80 gib", 80 * 2**30), ("1.5TB", 1500 * GB), ("24000MiB", 24000 * 2**20)]
)
def test_sizes_have_units(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["80", "80XB", "GB", "-80GB", "0GB", "", "1e3GB"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(SVFError, match="--gpu-memory"):
        parse_memory(text)
