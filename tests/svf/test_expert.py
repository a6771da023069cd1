"""Experts read from their folders: what they hold, and which of them go together."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from svf_rl.errors import SVFError
from svf_rl.svf import SVFConfig, svf_layers
from svf_rl.svf.expert import adapter_name, check_same_base, distinct_adapter_names, read_expert

MakeLlama = Callable[..., PreTrainedModel]


@pytest.fixture
def saved(make_llama: MakeLlama, tmp_path: Path) -> Callable[..., Path]:
    """`saved("a", seed=0, target_modules="mlp")`: the folder of an adapter of the model of that seed."""

    def save(name: str, seed: int = 0, **config: object) -> Path:
        model = get_peft_model(make_llama(seed), SVFConfig(init="random", **config))
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


def test_an_expert_is_its_vectors_under_the_names_of_the_base_model(
    saved: Callable[..., Path], make_llama: MakeLlama
) -> None:
    expert = read_expert(saved("a"))
    shapes = {name: tuple(z.shape) for name, z in expert.z.items()}
    assert expert.name == "a"
    assert shapes == {f"model.layers.{i}.mlp.{kind}_proj": (32,) for i in (0, 1) for kind in ("gate", "up", "down")}
    model = get_peft_model(make_llama(), SVFConfig())
    ids = {path.removeprefix("base_model.model."): layer.weight_id for path, layer in svf_layers(model).items()}
    assert expert.fingerprints == ids
    assert expert.bytes == (expert.folder / "adapter_model.safetensors").stat().st_size


def test_experts_of_one_base_go_together(saved: Callable[..., Path]) -> None:
    check_same_base([read_expert(saved(name)) for name in "abc"])


def test_experts_of_other_weights_or_targets_do_not(saved: Callable[..., Path]) -> None:
    here = read_expert(saved("here"))
    with pytest.raises(
        SVFError, match=r"here and elsewhere were trained on different base weights.*down_proj is the first"
    ):
        check_same_base([here, read_expert(saved("elsewhere", seed=1))])
    with pytest.raises(SVFError, match="here and attention have different targets"):
        check_same_base([here, read_expert(saved("attention", target_modules="attention"))])


def test_what_is_no_expert_is_said_in_one_line(
    saved: Callable[..., Path], make_llama: MakeLlama, tmp_path: Path
) -> None:
    get_peft_model(make_llama(), LoraConfig(target_modules=["up_proj"])).save_pretrained(tmp_path / "lora")
    (tmp_path / "empty").mkdir()
    torn = saved("torn") / "adapter_model.safetensors"
    torn.write_bytes(torn.read_bytes()[:200])
    no_json = saved("no_json")
    (no_json / "adapter_config.json").write_text("{")
    expected = {
        "lora": "holds a LORA adapter",
        "empty": "no adapter in",
        "torn": "is damaged",
        "no_json": "is damaged .not valid JSON.: save the adapter again",
        "not/there/at/all": "neither a local folder nor an adapter that can be downloaded",
    }
    for name, message in expected.items():
        with pytest.raises(SVFError, match=message) as caught:
            read_expert(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_vector_that_is_not_finite_is_refused(make_llama: MakeLlama, tmp_path: Path) -> None:
    model = get_peft_model(make_llama(), SVFConfig())
    next(iter(svf_layers(model).values())).svf_z["default"].weight.data[0] = torch.nan
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(SVFError, match="is not finite"):
        read_expert(tmp_path / "nan")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("math", "math"),
        ("v1.5", "v1_5"),
        ("svf", "svf-expert"),
        ("train", "train-expert"),
        ("training", "training-expert"),
        ("items", "items-expert"),
    ],
)
def test_names_that_peft_cannot_take_are_changed(name: str, expected: str) -> None:
    assert adapter_name(name) == expected


def test_names_that_would_be_one_adapter_are_refused() -> None:
    assert distinct_adapter_names(["a.1", "b"]) == {"a.1": "a_1", "b": "b"}
    with pytest.raises(SVFError, match=r"'a\.1' and 'a_1' have names that are the same for PEFT"):
        distinct_adapter_names(["a.1", "a_1"])
