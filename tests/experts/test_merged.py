"""A merged model is a plain one that does what the adapter does."""

import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from fakes import refusal, save_adapter
from peft import LNTuningConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM

from svf_rl.errors import SVFError
from svf_rl.experts.arguments import MergeArguments
from svf_rl.experts.merged import merge
from svf_rl.generation.weights import adapted_weights
from svf_rl.models.arguments import ModelArguments

PROMPT = torch.tensor([[1, 40, 50, 60]])


def generate(model) -> torch.Tensor:
    return model.generate(PROMPT, max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "merged"


@pytest.mark.parametrize("tied", [True, False])
def test_logits_and_greedy_tokens_are_those_of_the_adapter(tied, make_base, make_expert, loaded, logits, out):
    base = make_base(tie_word_embeddings=tied)
    expert = make_expert("expert", on=base)
    merge(ModelArguments(str(base)), [str(expert)], out)
    merged, adapted = loaded(out), loaded(base, expert)
    torch.testing.assert_close(logits(merged), logits(adapted), rtol=0, atol=1e-4)
    assert (logits(merged) - logits(loaded(base))).abs().max() > 0.01
    assert torch.equal(generate(merged), generate(adapted))


@pytest.mark.parametrize(
    "config",
    [
        {"parameterization": "sigmoid"}, {"renormalize": True}, {"target_modules": "attention"}, {"core": "top:5"},
        {"core": "projected:13"}, {"core": "band:2"}, {"core": "block:5:random"},
    ],
    ids=str,
)  # fmt: skip
def test_every_form_of_svf(config, base, make_expert, loaded, logits, out):
    expert = make_expert("expert", **config)
    merge(ModelArguments(str(base)), [str(expert)], out)
    torch.testing.assert_close(logits(loaded(out)), logits(loaded(base, expert)), rtol=0, atol=1e-4)


def test_trained_biases_are_merged_and_count_as_no_matrices(make_base, make_expert, loaded, logits, out):
    base = make_base(attention_bias=True)
    expert = make_expert("expert", on=base, target_modules="attention", biases=True)
    assert merge(ModelArguments(str(base)), [str(expert)], out).matrices == 4
    torch.testing.assert_close(logits(loaded(out)), logits(loaded(base, expert)), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("scope", "rows"), [("global", 1), ("layer", 2), ("matrix", 6)])
@pytest.mark.parametrize("form", ["mask", "deviation"])
def test_a_combination_is_merged_as_it_acts_on_a_loaded_model(
    scope, rows, form, base, make_expert, loaded, logits, out
):
    experts = [make_expert("a", seed=1), make_expert("b", seed=2, parameterization="sigmoid")]
    weights = torch.rand(rows, 2, generator=torch.Generator().manual_seed(0)).tolist()
    merge(ModelArguments(str(base)), [str(e) for e in experts], out, MergeArguments(weights, scope, form))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), experts[0], "expert_1")
    model.load_adapter(experts[1], "expert_2")
    model.add_weighted_adapter(["expert_1", "expert_2"], weights, "mixed", scope=scope, form=form)
    model.set_adapter("mixed")
    torch.testing.assert_close(logits(loaded(out)), logits(model.eval()), rtol=0, atol=1e-4)


def test_experts_without_weights_are_averaged(base, make_expert, tmp_path):
    experts = [str(make_expert("a", seed=1)), str(make_expert("b", seed=2))]
    merge(ModelArguments(str(base)), experts, tmp_path / "mean")
    merge(ModelArguments(str(base)), experts, tmp_path / "half", MergeArguments([0.5, 0.5], normalized=True))
    mean, half = (load_file(tmp_path / name / "model.safetensors") for name in ("mean", "half"))
    assert all(torch.equal(mean[key], half[key]) for key in mean)


def test_lora_is_merged(base, make_lora, loaded, logits, out):
    lora = make_lora("lora")
    merge(ModelArguments(str(base)), [str(lora)], out)
    torch.testing.assert_close(logits(loaded(out)), logits(loaded(base, lora)), rtol=0, atol=1e-4)


def test_dora_and_full_fine_tuning_are_merged(base, make_lora, loaded, logits, tmp_path):
    dora = make_lora("dora", use_dora=True)
    save_adapter(tmp_path / "full", LNTuningConfig(target_modules=["up_proj"]), 1, 0.05, base=base)
    for adapter in (dora, tmp_path / "full"):
        out = tmp_path / f"{adapter.name} merged"
        merge(ModelArguments(str(base)), [str(adapter)], out)
        torch.testing.assert_close(logits(loaded(out)), logits(loaded(base, adapter)), rtol=0, atol=1e-4)
        assert (logits(loaded(out)) - logits(loaded(base))).abs().max() > 0.01


def test_cores_of_multipliers_are_combined_with_others(base, make_expert, loaded, logits, out):
    experts = [make_expert("few", core="projected:13"), make_expert("all", seed=2)]
    merge(ModelArguments(str(base)), [str(path) for path in experts], out, MergeArguments([0.5, 0.5]))
    model = loaded(base, experts[0])
    model.load_adapter(str(experts[1]), "all")
    model.add_weighted_adapter(["default", "all"], [0.5, 0.5], "mixed")
    model.set_adapter("mixed")
    torch.testing.assert_close(logits(loaded(out)), logits(model.eval()), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("config", "says"), [({"core": "band:1"}, "a core band:1"), ({"biases": True}, "biases")])
def test_what_is_no_multiplier_is_not_combined(config, says, base, make_expert, out):
    experts = [str(make_expert("other", **config)), str(make_expert("all"))]
    with pytest.raises(SVFError, match=f"has {says}, more than multipliers"):
        merge(ModelArguments(str(base)), experts, out)
    assert not out.exists()


def test_an_adapter_of_one_of_two_tied_matrices_unties_them(base, make_lora, loaded, logits, out):
    lora = make_lora("lora", target_modules=["lm_head"])
    merge(ModelArguments(str(base)), [str(lora)], out)
    assert loaded(out).config.tie_word_embeddings is False
    torch.testing.assert_close(logits(loaded(out)), logits(loaded(base, lora)), rtol=0, atol=1e-4)


def test_modules_trained_in_full_are_merged(base, make_lora, loaded, logits, out):
    lora = make_lora("lora", modules_to_save=["lm_head", "norm"])
    weights = load_file(lora / "adapter_model.safetensors")
    norm = next(value for key, value in weights.items() if key.endswith("norm.weight"))
    norm.mul_(1.5)
    save_file(weights, lora / "adapter_model.safetensors", metadata={"format": "pt"})
    merge(ModelArguments(str(base)), [str(lora)], out)
    torch.testing.assert_close(logits(loaded(out)), logits(loaded(base, lora)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_z_1_every_weight_is_the_base_s_to_the_bit(dtype, make_base, make_expert, out):
    base = make_base(dtype=dtype)
    merge(ModelArguments(str(base)), [str(make_expert("expert", size=0, on=base))], out)
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and after[key].dtype == dtype for key in before)


def test_the_type_is_the_base_s_or_that_of_the_training_or_the_one_asked_for(
    make_base, make_expert, write_summary, loaded, tmp_path
):
    base = make_base(dtype=torch.bfloat16)
    expert = make_expert("expert", on=base, dtype="float32")

    def dtype(out: str, asked: str = "auto") -> str:
        merged = merge(ModelArguments(str(base), dtype=asked), [str(expert)], tmp_path / out)
        assert loaded(tmp_path / out).dtype == getattr(torch, merged.dtype)
        return merged.dtype

    assert dtype("stored") == "bfloat16"
    write_summary(expert)
    assert dtype("trained") == "float32"
    assert dtype("asked", "float16") == "float16"


def test_a_large_model_is_cut_into_shards(base, make_expert, loaded, logits, out):
    expert = make_expert("expert")
    merge(ModelArguments(str(base)), [str(expert)], out, MergeArguments(max_shard_size="40KB"))
    assert len(list(out.glob("*.safetensors"))) > 1
    torch.testing.assert_close(logits(loaded(out)), logits(loaded(base, expert)), rtol=0, atol=1e-4)


def test_tokenizer_and_generation_settings_come_along(make_base, make_expert, out):
    base = make_base()
    settings = json.loads((base / "generation_config.json").read_text())
    # as some published models have it: transformers reads it with a warning and refuses to write it
    (base / "generation_config.json").write_text(json.dumps({**settings, "temperature": 0.6}))
    merge(ModelArguments(str(base)), [str(make_expert("expert", on=base))], out)
    chat = [{"role": "user", "content": "6 + 1?"}]
    texts = [AutoTokenizer.from_pretrained(f).apply_chat_template(chat, tokenize=False) for f in (base, out)]
    assert texts[0] == texts[1]
    assert json.loads((out / "generation_config.json").read_text())["temperature"] == 0.6
    assert str(base) not in "".join(path.read_text() for path in out.glob("*.json"))


@pytest.fixture
def refused(base, out, tmp_path):
    """`refused(experts, **options)`: the one line, and nothing new on the disk."""

    def run(experts, model=None, **options) -> str:
        before = sorted(tmp_path.rglob("*"))
        experts = [str(expert) for expert in experts]
        line = refusal(lambda: merge(model or ModelArguments(str(base)), experts, out, MergeArguments(**options)))
        assert sorted(tmp_path.rglob("*")) == before
        return line

    return run


def test_generation_settings_that_transformers_does_not_write(refused, base, make_expert, make_base):
    base = make_base()
    settings = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps({**settings, "early_stopping": True}))
    said = refused([make_expert("expert", on=base)], ModelArguments(str(base)))
    assert "does not write the base model's generation_config.json" in said


def test_a_lora_of_fused_experts_is_refused(tmp_path):
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, num_local_experts=2,
        )
    )  # fmt: skip
    config = LoraConfig(r=2, target_modules=[], target_parameters=["mlp.experts.down_proj"], task_type="CAUSAL_LM")
    with pytest.raises(SVFError, match="whose weight cannot be rebuilt"):
        list(adapted_weights(get_peft_model(model, config)))


def test_a_missing_or_damaged_expert(refused, make_expert, tmp_path):
    assert "nowhere" in refused(["./nowhere"])
    expert = make_expert("expert")
    (expert / "adapter_model.safetensors").write_bytes(b"half a file")
    assert "damaged" in refused([expert])
    assert "damaged" in refused([expert, make_expert("other")])


def test_an_expert_of_another_base(refused, make_base, make_expert):
    other = make_expert("other", on=make_base(seed=5))
    assert "other base weights" in refused([other])
    assert "different base weights" in refused([make_expert("mine"), other])


def test_a_base_model_that_does_not_fit_or_is_none(refused, make_base, make_expert, make_lora):
    wider = ModelArguments(str(make_base(hidden_size=64)))
    assert "does not fit" in refused([make_lora("lora")], wider)
    assert "other base weights" in refused([make_expert("expert")], wider)
    assert "nowhere" in refused([make_expert("expert")], ModelArguments("./nowhere"))


def test_weights_that_do_not_fit(refused, make_expert):
    two = [make_expert("a", seed=1), make_expert("b", seed=2)]
    assert "3 weights for 2 experts" in refused(two, weights=[0.2, 0.3, 0.5])
    assert "sum to 1" in refused(two, weights=[0.5, 0.6], normalized=True)
    assert "(2, 2)" in refused(two, weights=[[1.0, 0.0]] * 3, scope="layer")
    assert "scope" in refused(two, scope="head")
    assert "form" in refused(two, form="sum")
    assert "several experts" in refused(two[:1], weights=[1.0])


def test_lora_in_a_combination(refused, make_expert, make_lora):
    assert "LORA" in refused([make_expert("a"), make_lora("b")])


def test_a_shard_size_that_is_none(refused, make_expert):
    assert "5GB" in refused([make_expert("a")], max_shard_size="large")


def test_a_folder_that_is_taken(refused, make_expert, out):
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert "not empty" in refused([make_expert("a")])


def test_a_full_disk_leaves_nothing_behind(refused, make_expert):
    expert = make_expert("a")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))  # of one file, which stands for the disk here
    try:
        line = refused([expert])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot write" in line
    assert "free some space" in line


def test_what_a_killed_call_left_is_cleared_and_an_empty_folder_is_taken(base, make_expert, out):
    left = out.with_name(".merged.partial")
    (left / "sub").mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    out.mkdir()
    merge(ModelArguments(str(base)), [str(make_expert("a"))], out)
    assert not left.exists()
    assert (out / "model.safetensors").is_file()
    assert not (out / "sub").exists()
    shutil.rmtree(out)
