"""Saved adapters as a factored engine reads them: what they are on the model, or one line that says why not."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fakes import adapted_model, save_adapter
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from svf_rl.errors import SVFError
from svf_rl.generation.vllm.factored.adapters import AdapterRows
from svf_rl.generation.vllm.factored.folders import AdapterFolders
from svf_rl.generation.vllm.factored.table import MultiplierTable
from svf_rl.generation.vllm.mixture import Mixture
from svf_rl.generation.weights import SharedWeights, active_multipliers
from svf_rl.quickstart import model_path
from svf_rl.svf import SVFConfig, svf_layers

ALL = SVFConfig(target_modules="mlp+attention", task_type="CAUSAL_LM")
SIGMOID = SVFConfig(target_modules="mlp", parameterization="sigmoid", renormalize=True, task_type="CAUSAL_LM")


def _folders(config: SVFConfig = ALL, dtype: torch.dtype = torch.float32) -> AdapterFolders:
    """Of an engine that serves the matrices that `config` names, of the bundled model."""
    model = adapted_model(config, dtype=dtype)
    layers = {path.removeprefix("base_model.model."): layer for path, layer in svf_layers(model).items()}
    fingerprints = {path: layer.weight_id for path, layer in layers.items()}
    return AdapterFolders("quickstart", SharedWeights.of(model).factors, fingerprints, {path: path for path in layers})


@pytest.fixture(scope="module")
def folders() -> AdapterFolders:
    return _folders()


@pytest.mark.parametrize(
    "config",
    [ALL, SIGMOID, *(SVFConfig(core=core, task_type="CAUSAL_LM") for core in ("top:7", "bottom:7", "projected:13"))],
    ids=["direct, all matrices", "sigmoid, some matrices", "top", "bottom", "projected"],
)
def test_what_is_read_is_what_the_adapter_is_on_the_model(
    folders: AdapterFolders, tmp_path: Path, config: SVFConfig
) -> None:
    theirs = active_multipliers(adapted_model(config, seed=1, by=0.3))
    read = folders.read(save_adapter(tmp_path, config, seed=1, by=0.3))
    assert read.keys() == theirs.keys()
    for path, m in theirs.items():
        torch.testing.assert_close(read[path].float(), m, rtol=1e-6, atol=1e-7)


def test_an_adapter_that_was_trained_in_another_type_is_taken_as_peft_takes_it(tmp_path: Path) -> None:
    """The weights differ by rounding, and `z` does to them what it did to its own."""
    assert _folders(dtype=torch.bfloat16).read(save_adapter(tmp_path, ALL, seed=1, by=0.3))


def _lora(folder: Path) -> None:
    save_adapter(folder, LoraConfig(target_modules=["up_proj"], task_type="CAUSAL_LM"))


def _band(folder: Path) -> None:
    save_adapter(folder, SVFConfig(core="band:1", task_type="CAUSAL_LM"))


def _of_other_weights(folder: Path) -> None:
    base, other = adapted_model(ALL).unload(), folder.parent / "other base"
    for parameter in base.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    base.save_pretrained(other)
    save_adapter(folder, ALL, seed=1, by=0.3, base=other)


def _changed(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        save_adapter(folder, ALL, seed=1, by=0.3)
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, {"format": "pt"})

    return write


def _nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[next(name for name in tensors if "svf_z" in name)][0] = torch.nan


def _longer(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if "svf_z" in name)
    tensors[name] = torch.cat([tensors[name], tensors[name]])


def _without_probes(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if "svf_probe" in name]:
        del tensors[name]


def _without_z(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if "svf_z" in name]:
        del tensors[name]


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (_lora, "holds a LORA adapter"),
        (_band, "has a core band:1, more than multipliers"),
        (_of_other_weights, "trained on other base weights than those of quickstart"),
        (_changed(_nan), "is not finite"),
        (_changed(_longer), "was trained on another model than quickstart"),
        (_changed(_without_probes), "trained on other base weights"),
        (_changed(_without_z), "holds no z"),
        (lambda folder: folder.mkdir(), "no adapter in"),
    ],
    ids=["LoRA", "band", "other base", "NaN", "another length", "no probes", "no z", "empty folder"],
)
def test_what_cannot_be_served_is_refused_in_one_line(
    folders: AdapterFolders, tmp_path: Path, write: Callable[[Path], None], said: str
) -> None:
    write(tmp_path / "adapter")
    with pytest.raises(SVFError, match=said) as refused:
        folders.read(str(tmp_path / "adapter"))
    assert "\n" not in str(refused.value)


def test_matrices_that_are_not_served_are_named(tmp_path: Path) -> None:
    with pytest.raises(SVFError, match=r"adapts model.layers.0.self_attn.\w+, which this server does not serve"):
        _folders(SIGMOID).read(save_adapter(tmp_path, ALL, seed=1, by=0.3))


def _request(folder: str, number: int, **options: bool) -> SimpleNamespace:
    return SimpleNamespace(
        lora_int_id=number, lora_path=folder, lora_name=f"adapter {number}", **{"load_inplace": False, **options}
    )


def test_only_so_many_adapters_of_folders_stay_and_others_are_read_again(
    folders: AdapterFolders, tmp_path: Path
) -> None:
    names = [save_adapter(tmp_path / str(seed), ALL, seed=seed, by=0.3) for seed in range(3)]
    read: list[str] = []

    def reading(folder: str) -> dict[str, torch.Tensor]:
        read.append(folder)
        return folders.read(folder)

    factors = SharedWeights.of(adapted_model(ALL)).factors
    rows = AdapterRows(MultiplierTable({path: held.s for path, held in factors.items()}, 8, slots=2), reading, kept=2)
    requests = [_request(name, number) for number, name in enumerate(names, start=1)]
    rows.add_adapter(requests[0])
    rows.add_adapter(requests[1])
    rows.set_active_adapters([requests[0]], SimpleNamespace(index_mapping=(1, 0)))
    rows.add_adapter(requests[2])  # the second was not used for longest
    assert rows.list_adapters() == {1, 3}
    rows.set_active_adapters([requests[1], requests[2]], SimpleNamespace(index_mapping=(2, 3)))
    assert rows.list_adapters() == {2, 3}
    assert read == [names[0], names[1], names[2], names[1]]
    with pytest.raises(SVFError, match="under another name"):
        rows.add_adapter(_request(names[0], 3, load_inplace=True))


@pytest.mark.vllm
def test_a_folder_of_adapters_is_looked_up_by_name_and_nothing_outside_of_it(tmp_path: Path) -> None:
    from svf_rl.generation.vllm.resolver import FolderResolver

    root = tmp_path / "adapters"
    save_adapter(root / "math", ALL, seed=1, by=0.3)
    save_adapter(tmp_path / "outside", ALL)
    _lora(root / "lora")
    shutil.copytree(root / "math", root / ".hidden")
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "broken").mkdir()
    (root / "broken" / "adapter_config.json").write_text("{")

    def found(name: str) -> str | None:
        request = asyncio.run(FolderResolver(str(root)).resolve_lora("model", name))
        return None if request is None else request.lora_path

    assert found("math") == str(root / "math")
    names = ["lora", "none", "broken", "link", ".hidden", "..", "../outside", "", ".", str(tmp_path / "outside")]
    assert [name for name in names if found(name) is not None] == []


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("form", ["mask", "deviation"])
def test_a_mixture_is_what_the_combined_adapter_is(
    folders: AdapterFolders, tmp_path: Path, scope: str, form: str
) -> None:
    names = [save_adapter(tmp_path / str(seed), ALL, seed=seed, by=0.3) for seed in (1, 2)]
    alpha = [[0.6, 0.4], [1.0, 0.2], [0.0, 0.5]] if scope == "layer" else [[0.6, 0.4]]
    read = folders.read(Mixture(tuple(names), tuple(map(tuple, alpha)), scope, form).path)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_path()), names[0], "one")
    model.load_adapter(names[1], "two")
    model.add_weighted_adapter(["one", "two"], alpha, "mix", scope=scope, form=form)
    model.set_adapter("mix", inference_mode=True)
    theirs = active_multipliers(model)
    assert read.keys() == theirs.keys()
    for path, m in theirs.items():
        torch.testing.assert_close(read[path].float(), m, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("svf-mix:{", "no JSON"),
        ('svf-mix:{"experts": ["a"], "alpha": [[1, 2]]}', "combination must have"),
        ('svf-mix:{"experts": ["a"], "alpha": [[NaN]]}', "combination must have"),
        ('svf-mix:{"experts": ["/nowhere/a"], "alpha": [[1]]}', "/nowhere/a"),
    ],
)
def test_a_mixture_that_is_none_is_refused(folders: AdapterFolders, path: str, said: str) -> None:
    with pytest.raises(SVFError, match=said):
        folders.read(path)
