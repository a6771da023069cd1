"""Quantised base models: their layers keep their kernels, and SVF is of the weights that they were quantised from."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import SIZES, move
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    QuantoConfig,
    TorchAoConfig,
)
from transformers.pytorch_utils import Conv1D

from svf_rl.errors import SVFError
from svf_rl.svf import SVFConfig, reference_mode, svf_layers

# 4 bits of bitsandbytes need rows of whole blocks of 64
WIDE = {**SIZES, "hidden_size": 64, "intermediate_size": 128}


def torchao(name: str, **options: Any) -> TorchAoConfig:
    return TorchAoConfig(getattr(pytest.importorskip("torchao.quantization"), name)(**options))


def bitsandbytes(**options: Any) -> BitsAndBytesConfig:
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(**options)


def quanto(weights: str, **options: Any) -> QuantoConfig:
    pytest.importorskip("optimum.quanto")
    return QuantoConfig(weights=weights, **options)


KERNELS = {
    "torchao int8": lambda: torchao("Int8WeightOnlyConfig"),
    "torchao float8": lambda: torchao("Float8WeightOnlyConfig"),
    "torchao int4": lambda: torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4),
    "bitsandbytes int8": lambda: bitsandbytes(load_in_8bit=True),
    "bitsandbytes nf4": lambda: bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "bitsandbytes nf4 twice": lambda: bitsandbytes(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    ),
    "bitsandbytes fp4 in bfloat16": lambda: bitsandbytes(
        load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_quant_storage=torch.bfloat16
    ),
    "quanto int8": lambda: quanto("int8"),
    "quanto int4": lambda: quanto("int4"),
    "quanto float8": lambda: quanto("float8"),
}
# what quanto unpacks 4 bits with is compiled at its first use, which takes a minute or more
COMPILED = [pytest.mark.slow]
kernels = pytest.mark.parametrize(
    "kernel", [pytest.param(name, marks=COMPILED if name == "quanto int4" else []) for name in KERNELS]
)
INT8 = "quanto int8"  # with what `make install` installs


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    AutoModelForCausalLM.from_config(LlamaConfig(**WIDE)).save_pretrained(folder)
    return folder


def load(folder: Path, kernel: str | None = None) -> PreTrainedModel:
    config = KERNELS[kernel]() if kernel else None
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32).eval()


def adapted(folder: Path, kernel: str | None = None, **settings: Any) -> PeftModel:
    return get_peft_model(load(folder, kernel), SVFConfig(**settings))


def set_to_float(model: nn.Module) -> nn.Module:
    """Keep bitsandbytes from packing its weights for inference, which rounds them to bfloat16, as an adapter does."""
    for module in model.modules():
        module.support_avx512bf16_for_cpu = False
    return model


@kernels
def test_at_z_1_the_model_is_the_quantised_base_to_the_bit(kernel: str, checkpoint: Path, logits: Callable) -> None:
    base = logits(set_to_float(load(checkpoint, kernel)))
    model = adapted(checkpoint, kernel)
    assert torch.equal(logits(model), base)
    assert not torch.equal(base, logits(load(checkpoint)))


@kernels
def test_the_reference_is_the_quantised_base(
    kernel: str, checkpoint: Path, logits: Callable, perturb: Callable
) -> None:
    base = logits(set_to_float(load(checkpoint, kernel)))
    model = perturb(adapted(checkpoint, kernel))
    assert not torch.equal(logits(model), base)
    with reference_mode(model):
        assert torch.equal(logits(model), base)
    with model.disable_adapter():
        assert torch.equal(logits(model), base)


@kernels
def test_an_adapter_adds_the_change_of_the_original_weight(kernel: str, checkpoint: Path, perturb: Callable) -> None:
    full = svf_layers(perturb(adapted(checkpoint)))
    x = {64: torch.randn(3, 64), 128: torch.randn(3, 128)}
    for name, layer in svf_layers(perturb(adapted(checkpoint, kernel))).items():
        rows = x[layer.in_features]
        change = layer(rows) - layer.base_layer(rows)
        torch.testing.assert_close(change, rows @ full[name].get_delta_weight("default").T, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("core", ["top:5", "projected:13", "band:2", "block:5:random"])
def test_other_cores_and_biases_add_theirs(core: str, checkpoint: Path) -> None:
    full, quantised = (adapted(checkpoint, kernel, core=core, biases=True) for kernel in (None, INT8))
    for model in (full, quantised):
        move(model, seed=0, by=0.2)
    plain = svf_layers(full)
    for name, layer in svf_layers(quantised).items():
        x = torch.randn(3, layer.in_features)
        expected = x @ plain[name].get_delta_weight("default").T + plain[name].bias_change()
        torch.testing.assert_close(layer(x) - layer.base_layer(x), expected, atol=1e-6, rtol=1e-4)


@kernels
def test_training_lowers_the_loss(kernel: str, checkpoint: Path, ids: Tensor) -> None:
    model = adapted(checkpoint, kernel).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.dtype == torch.float32 for parameter in trained)
    optimizer, losses = torch.optim.AdamW(trained, lr=0.05, weight_decay=0), []
    for _ in range(4):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in trained)
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


@kernels
@pytest.mark.parametrize("trained_on", ["the quantised model", "the original"])
def test_adapters_load_onto_the_quantised_model_and_onto_the_original(
    kernel: str, trained_on: str, checkpoint: Path, perturb: Callable, tmp_path: Path
) -> None:
    first, second = (kernel, None) if trained_on == "the quantised model" else (None, kernel)
    model = perturb(adapted(checkpoint, first))
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the adapter was trained")
        loaded = PeftModel.from_pretrained(load(checkpoint, second), tmp_path)
    saved, found = get_peft_model_state_dict(model), get_peft_model_state_dict(loaded)
    assert saved.keys() == found.keys()
    assert all(torch.equal(saved[name], found[name]) for name in saved)


def test_z_that_was_rounded_to_bfloat16_is_trained_in_float32(checkpoint: Path, logits: Callable) -> None:
    """TRL's trainers round what is trained over bitsandbytes' layers."""
    model = adapted(checkpoint, INT8)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    logits(model)
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}


def test_several_adapters_and_their_combinations(checkpoint: Path, logits: Callable, perturb: Callable) -> None:
    model = perturb(adapted(checkpoint, INT8))
    model.add_adapter("second", SVFConfig())
    perturb(model, "second", seed=1)
    model.add_weighted_adapter(["default", "second"], [1.0, 0.0], "first alone")
    first = logits(model)
    model.set_adapter("second")
    assert not torch.equal(logits(model), first)
    model.set_adapter("first alone")
    torch.testing.assert_close(logits(model), first)


def test_each_row_of_a_batch_may_have_its_own_adapter(
    checkpoint: Path, ids: Tensor, logits: Callable, perturb: Callable
) -> None:
    base, model = logits(load(checkpoint, INT8)), perturb(adapted(checkpoint, INT8)).eval()
    with torch.no_grad():
        mixed = model(input_ids=ids, adapter_names=["__base__", "default"]).logits
    torch.testing.assert_close(mixed, torch.stack([base[0], logits(model)[1]]))


@pytest.mark.parametrize("call", ["merge_adapter", "merge_and_unload"])
def test_merging_is_refused_and_changes_nothing(
    call: str, checkpoint: Path, logits: Callable, perturb: Callable
) -> None:
    # the first layer is not quantised, and would be merged
    quantised = quanto("int8", modules_to_not_convert=["model.layers.0", "lm_head"])
    base = AutoModelForCausalLM.from_pretrained(checkpoint, quantization_config=quantised, dtype=torch.float32)
    model = perturb(get_peft_model(base, SVFConfig()))
    assert {layer.quantized for layer in svf_layers(model).values()} == {False, True}
    before = logits(model)
    with pytest.raises(SVFError, match=r"layers\.1\..* is quantized, .*svf-rl merge") as refused:
        getattr(model, call)()
    assert "\n" not in str(refused.value)
    assert torch.equal(logits(model), before)


def test_unloading_gives_the_quantised_model_back(checkpoint: Path, logits: Callable, perturb: Callable) -> None:
    model = perturb(adapted(checkpoint, INT8)).unload()
    assert torch.equal(logits(model), logits(load(checkpoint, INT8)))


def test_layers_of_gpt2_are_turned_around(tmp_path: Path, logits: Callable) -> None:
    """Its files have (in, out), and bitsandbytes puts `Linear4bit` in place of its `Conv1D`."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=64, n_inner=128, n_head=2, n_layer=1, vocab_size=64, bos_token_id=1, eos_token_id=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = adapted(tmp_path, "bitsandbytes nf4")
    assert {layer.in_features for layer in svf_layers(model).values()} == {64, 128}
    assert torch.equal(logits(model), logits(set_to_float(load(tmp_path, "bitsandbytes nf4"))))


# What cannot be adapted


def in_memory(checkpoint: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**WIDE)).eval()
    model.load_state_dict(load(checkpoint).state_dict())
    package = pytest.importorskip("optimum.quanto")
    package.quantize(model, weights=package.qint8)
    package.freeze(model)
    return model


def of_a_lost_folder(checkpoint: Path) -> PreTrainedModel:
    model = load(checkpoint, INT8)
    model.name_or_path = f"{checkpoint}/gone"
    return model


def of_quantised_files(checkpoint: Path) -> PreTrainedModel:
    folder = checkpoint / "quantised"
    load(checkpoint, "torchao int8").save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (in_memory, "names no checkpoint"),
        (of_a_lost_folder, "gone"),
        (of_quantised_files, "holds quantised weights only"),
    ],
)
def test_without_the_original_weights_a_line_says_how_to_give_them(
    make: Callable, why: str, checkpoint: Path, logits: Callable
) -> None:
    model = make(checkpoint)
    before = logits(model)
    with pytest.raises(SVFError, match=rf"layers\.0\.mlp\.\w+ is quantized .*{why}.*model\.name_or_path") as refused:
        get_peft_model(model, SVFConfig())
    assert "\n" not in str(refused.value)
    assert not svf_layers(model)
    model.name_or_path = str(checkpoint)
    assert torch.equal(logits(get_peft_model(model, SVFConfig())), before)


@pytest.mark.parametrize("kernel", [INT8, "bitsandbytes nf4"])
def test_weights_that_are_not_what_was_quantised_are_refused(kernel: str, checkpoint: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(LlamaConfig(**WIDE)).save_pretrained(tmp_path)
    model = load(checkpoint, kernel)
    model.name_or_path = str(tmp_path)
    with pytest.raises(SVFError, match=r"is quantized .* 1\d\d% off those of the checkpoint"):
        get_peft_model(model, SVFConfig())


def test_a_kernel_without_gradient_is_refused(checkpoint: Path) -> None:
    config = torchao("Int8DynamicActivationInt8WeightConfig")
    model = AutoModelForCausalLM.from_pretrained(checkpoint, quantization_config=config, dtype=torch.float32)
    with pytest.raises(SVFError, match="passes no gradient to its input"):
        get_peft_model(model, SVFConfig())


def test_weights_that_bitsandbytes_packed_for_inference_are_refused(checkpoint: Path, logits: Callable) -> None:
    """It does so on CPUs with bfloat16 alone."""
    model = load(checkpoint, "bitsandbytes nf4")
    logits(model)
    if not getattr(model.model.layers[0].mlp.up_proj.weight.quant_state, "packing_format_for_cpu", False):
        pytest.skip("this CPU has no bfloat16")
    with pytest.raises(SVFError, match="load it anew, and put the adapter on before the first forward pass"):
        get_peft_model(model, SVFConfig())


class Packed(nn.Module):
    """As GPTQ and AWQ hold a weight."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(inputs // 8, outputs, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(*x.shape[:-1], self.qweight.shape[1])


def test_a_layer_of_another_kind_is_refused(checkpoint: Path) -> None:
    model = load(checkpoint)
    model.model.layers[1].mlp.up_proj = Packed(64, 128)
    with pytest.raises(SVFError, match=r"layers\.1\.mlp\.up_proj, a Packed"):
        get_peft_model(model, SVFConfig())


def test_a_quantised_conv1d_is_refused() -> None:
    model = nn.Sequential(Conv1D(4, 6))
    model[0].weight = nn.Parameter(torch.zeros(6, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(SVFError, match=r"0 is a quantized Conv1D \(torch.int8\)"):
        get_peft_model(model, SVFConfig(target_modules=["0"]))
