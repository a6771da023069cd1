"""What an adapter moved: of each kind that is trained, against the dense difference of merged and base weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fakes import refusal, save_adapter
from peft import LNTuningConfig, LoraConfig, PeftConfig
from transformers import GPT2Config, GPT2LMHeadModel

from svf_rl.experts.weight_changes import weight_changes
from svf_rl.models.arguments import ModelArguments
from svf_rl.svf import SVFConfig
from svf_rl.svf.cache import FactorCache
from svf_rl.svf.change import measure_change
from svf_rl.svf.decompose import thin_svd

LORA = {"r": 4, "target_modules": ["up_proj", "down_proj"], "task_type": "CAUSAL_LM"}
KINDS: dict[str, PeftConfig] = {
    "svf": SVFConfig(task_type="CAUSAL_LM"),
    "top": SVFConfig(task_type="CAUSAL_LM", core="top:4"),
    "projected": SVFConfig(task_type="CAUSAL_LM", core="projected:13"),
    "band": SVFConfig(task_type="CAUSAL_LM", core="band:1"),
    "block": SVFConfig(task_type="CAUSAL_LM", core="block:4"),
    "lora": LoraConfig(**LORA),
    "dora": LoraConfig(**LORA, use_dora=True),
    "full": LNTuningConfig(target_modules=["up_proj"], task_type="CAUSAL_LM"),
    "with a whole module": SVFConfig(task_type="CAUSAL_LM", modules_to_save=["lm_head", "norm"]),
}


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Callable[..., Path]:
    """`adapter(config, dtype, by)`: an adapter whose trained values have moved at random by so much; its folder."""

    def make(config: PeftConfig, dtype: str = "float32", by: float = 0.05) -> Path:
        return Path(save_adapter(tmp_path / "adapter", config, 1, by, base=base, dtype=getattr(torch, dtype)))

    return make


@torch.no_grad()
def dense(base: Path, adapter: Path, loaded: Callable[..., torch.nn.Module]) -> dict[tuple[int | None, str], object]:
    """The same by PEFT's own merge of the whole model."""
    before = {name: value.clone() for name, value in loaded(base).named_parameters()}
    merged = loaded(base, adapter).merge_and_unload()
    found = {}
    for name, after in merged.named_parameters():
        old = before[name if name in before else "model.embed_tokens.weight"]  # of a tied lm_head
        if after.dim() == 2 and not torch.equal(after, old):
            *_, number, part, last = f"..{name}".removesuffix(".weight").split(".")
            place = (int(number), f"{part}.{last}") if number else (None, last)
            found[place] = measure_change(after - old, thin_svd(old))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_the_figures_of_the_dense_difference(kind, base, adapter, loaded) -> None:
    folder = adapter(KINDS[kind])
    expected = dense(base, folder, loaded)
    found = weight_changes(ModelArguments(str(base)), folder)
    assert {(each.layer, each.module) for each in found} == set(expected)
    for each in found:
        other = expected[each.layer, each.module].__dict__
        assert each.change.__dict__ == pytest.approx(other, rel=1e-3), each
    if kind in ("svf", "top", "projected"):
        assert all(each.change.diagonal == pytest.approx(1) for each in found)
    elif kind in ("lora", "dora", "full"):
        assert all(each.change.diagonal < 0.3 for each in found)


def test_trained_biases_are_no_matrices(base, adapter) -> None:
    found = weight_changes(ModelArguments(str(base)), adapter(SVFConfig(task_type="CAUSAL_LM", biases=True)))
    assert [(each.layer, each.module) for each in found] == [
        (layer, f"mlp.{name}_proj") for layer in (0, 1) for name in ("gate", "up", "down")
    ]


def test_an_untrained_adapter_has_changed_nothing(base, make_expert) -> None:
    (first, *_) = weight_changes(ModelArguments(str(base)), make_expert("expert", size=0))
    assert first.to_dict() == {
        "layer": 0, "module": "mlp.gate_proj", "relative": 0.0, "stable_rank": None, "effective_rank": None,
        "diagonal": None,
    }  # fmt: skip


def test_the_rounding_of_the_base_to_the_type_of_the_training_is_no_change(base, adapter, write_summary) -> None:
    folder = adapter(LNTuningConfig(target_modules=["up_proj"]), "bfloat16", by=0.0)
    write_summary(folder, recipe={"dtype": "bfloat16"})
    assert all(each.change.relative == 0 for each in weight_changes(ModelArguments(str(base)), folder))
    assert all(each.change.relative > 0 for each in weight_changes(ModelArguments(str(base), dtype="float32"), folder))


def test_stored_factors_are_used(base, adapter, tmp_path, monkeypatch) -> None:
    weight_changes(ModelArguments(str(base)), adapter(KINDS["svf"]).rename(tmp_path / "svf"))  # stores them
    folder = adapter(KINDS["full"])
    read = []
    load = FactorCache.load

    def watched(self, *arguments):
        read.append(load(self, *arguments))
        return read[-1]

    monkeypatch.setattr(FactorCache, "load", watched)
    weight_changes(ModelArguments(str(base)), folder)
    assert len(read) == 2
    assert None not in read


def test_gpt_2_s_layout_is_turned(tmp_path) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=32))
    model.save_pretrained(tmp_path / "gpt2")
    svf = save_adapter(tmp_path / "svf", SVFConfig(task_type="CAUSAL_LM"), 1, 0.05, base=tmp_path / "gpt2")
    full = save_adapter(tmp_path / "full", LNTuningConfig(target_modules=["c_fc"]), 1, 0.05, base=tmp_path / "gpt2")
    arguments = ModelArguments(str(tmp_path / "gpt2"))
    found = weight_changes(arguments, svf)
    assert {each.module for each in found} == {"mlp.c_fc", "mlp.c_proj"}
    assert all(each.change.diagonal == pytest.approx(1) for each in found)
    (whole,) = weight_changes(arguments, full)
    assert 0 < whole.change.diagonal < 0.3


def test_what_cannot_be_measured_is_refused_in_one_line(base, adapter, make_base, tmp_path) -> None:
    arguments = ModelArguments(str(base))
    assert "nowhere" in refusal(lambda: weight_changes(arguments, "./nowhere"))
    norms = save_adapter(tmp_path / "norms", LNTuningConfig(target_modules=["norm"]), base=base)
    assert "changes no matrix" in refusal(lambda: weight_changes(arguments, norms))
    other = ModelArguments(str(make_base(seed=5)))
    assert "other base weights" in refusal(lambda: weight_changes(other, adapter(KINDS["svf"])))
