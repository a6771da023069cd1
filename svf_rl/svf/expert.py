"""Experts, that is saved SVF adapters: reading their folders without the base model."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from svf_rl.errors import SVFError, one_line, short_repr
from svf_rl.storage.loading_errors import loading_error
from svf_rl.svf.config import LARGEST, SVFConfig
from svf_rl.svf.core import DIAGONAL
from svf_rl.svf.mask import core_of, is_sound
from svf_rl.svf.saved_config import CONFIG, WEIGHTS, read_config

# The suffixes of a matrix's tensors in the file, after its path.
Z, BIAS, FINGERPRINT, PROBE = ".svf_z.weight", ".svf_bias.weight", ".svf_fingerprint", ".svf_probe"
RANK = ".svf_rank"  # of the matrix, where `z` has another number of values
_FILES = ["adapter_*", "*.json", "*.jsonl", "*.md"]  # that are downloaded: not the weights of a whole model
PREFIX = "base_model.model."
_LARGEST_RANK = 1 << 24


@dataclass(frozen=True)
class Expert:
    """A saved SVF adapter."""

    name: str  # in tables and weights
    folder: Path
    config: SVFConfig
    # By module path of the base model, such as `model.layers.0.mlp.gate_proj`: the trained vector (r,), fp32, as it is
    # stored (with `parameterization: sigmoid`, before the sigmoid); with another core than `diagonal` the multiplier.
    z: dict[str, Tensor]
    fingerprints: dict[str, str]  # by the same paths: hex digest of the base weight
    probes: dict[str, Tensor]  # by the same paths, where the file has it: (16,), see `svf_rl.svf.probe`
    bytes: int  # of the file with the vectors


def expert_folder(path: str | Path) -> Path:
    """The folder of an adapter: local, or downloaded from the Hub. Raises `SVFError` if there is neither, or if it is
    that of a model."""
    folder = Path(os.path.expanduser(path))  # noqa: PTH111  (Path.expanduser raises where there is no home)
    if not os.path.isdir(folder):  # noqa: PTH112  (Path.is_dir raises for a name that is too long)
        try:
            folder = Path(snapshot_download(str(path), allow_patterns=_FILES))
        except (OSError, HFValidationError) as error:
            raise loading_error("adapter", str(path), error) from error
    if (folder / "config.json").is_file() and not (folder / CONFIG).is_file():
        raise SVFError(f"{path} is a model and not an adapter: give it as the model (model_name_or_path)")
    return folder


def read_expert(path: str | Path, name: str | None = None) -> Expert:
    """Read an expert from a folder with `adapter_config.json` and `adapter_model.safetensors`, or by its Hub name; its
    own `name` is the folder's by default. Raises `SVFError` for no adapter, not one of SVF, or a damaged file."""
    folder = expert_folder(path)
    file = folder / WEIGHTS
    if not (folder / CONFIG).is_file() or not file.is_file():
        raise SVFError(f"no adapter in {path}: it needs {CONFIG} and {WEIGHTS}")
    config = read_config(folder)
    if not isinstance(config, SVFConfig):
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise SVFError(f"{path} holds a {kind} adapter: experts that are combined must be SVF adapters")
    if config.modules_to_save:
        raise SVFError(
            f"{path} also holds whole modules ({', '.join(config.modules_to_save)}), which cannot be combined: "
            "train the expert without modules_to_save"
        )
    if not config.is_multiplier:
        what = "biases" if config.biases else f"a core {config.core}"
        raise SVFError(
            f"{path} has {what}, more than multipliers of singular values: it can be neither combined nor served by "
            "factors; make a model of it (svf-rl merge), or train with core: diagonal"
        )
    z: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    fingerprints: dict[str, str] = {}
    probes: dict[str, Tensor] = {}
    try:
        with safe_open(file, framework="pt") as saved:
            for key in saved.keys():  # noqa: SIM118  (no mapping)
                if not is_well_formed(key, saved.get_tensor(key)):
                    raise SVFError(
                        f"{file}: {short_repr(key)} is of another type or shape: it is damaged, save it again"
                    )
                if key.endswith(Z):
                    z[key.removesuffix(Z).removeprefix(PREFIX)] = saved.get_tensor(key).float()
                elif key.endswith(FINGERPRINT):
                    digest = saved.get_tensor(key).flatten().to(torch.uint8).numpy().tobytes().hex()
                    fingerprints[key.removesuffix(FINGERPRINT).removeprefix(PREFIX)] = digest
                elif key.endswith(RANK):
                    ranks[key.removesuffix(RANK).removeprefix(PREFIX)] = int(saved.get_tensor(key).item())
                elif key.endswith(PROBE):
                    probes[key.removesuffix(PROBE).removeprefix(PREFIX)] = saved.get_tensor(key).float()
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise SVFError(f"{file} is damaged ({one_line(error)}): save the adapter again") from error
    if not z:
        raise SVFError(f"{file} holds no z: it is damaged, save the adapter again")
    if z.keys() != fingerprints.keys():
        raise SVFError(f"{file} lacks fingerprints of its weights: it is damaged, save the adapter again")
    for matrix, vector in z.items():
        if vector.ndim != 1 or not is_sound(vector):
            raise SVFError(
                f"{file}: z of {matrix} is not finite, above {LARGEST:g} or no vector: it is damaged, save the adapter "
                "again"
            )
    if config.core != DIAGONAL:
        z = {matrix: _expanded(config, matrix, vector, ranks.get(matrix), file) for matrix, vector in z.items()}
    return Expert(name or folder.resolve().name, folder, config, z, fingerprints, probes, file.stat().st_size)


def is_well_formed(key: str, tensor: Tensor) -> bool:
    """Whether a tensor of an adapter's file has a type, and where that is fixed the shape, of what its key names."""
    if key.endswith(FINGERPRINT):
        return bool(tensor.dtype == torch.uint8 and tensor.shape == (32,))
    if key.endswith(PROBE) and tensor.shape != (16,):
        return False
    is_number = tensor.is_floating_point() and tensor.element_size() > 1 and tensor.numel() > 0
    return is_number or not key.endswith((Z, BIAS, PROBE))


def _expanded(config: SVFConfig, matrix: str, values: Tensor, rank: int | None, file: Path) -> Tensor:
    """The multiplier (r,) that the few values of a core make."""
    core = core_of(config, matrix)
    if rank is None or not 0 < rank <= _LARGEST_RANK or len(values) != core.size(rank):
        raise SVFError(f"{file}: z of {matrix} is not that of a core {config.core}: it is damaged, save it again")
    return core(values, torch.ones(rank))


def adapter_name(name: str) -> str:
    """`name` as PEFT accepts it for an adapter: without dots, not a part of the prefix of SVF's parameters (`svf_`),
    and not what torch calls something of its own, such as `train`."""
    name = name.replace(".", "_")
    return f"{name}-expert" if name in "svf_" or hasattr(nn.ModuleDict(), name) else name


def distinct_adapter_names(names: Sequence[str]) -> dict[str, str]:
    """[`adapter_name`] of each. Raises `SVFError` for two that are the same for PEFT, such as `a.b` and `a_b`."""
    taken: dict[str, str] = {}
    for name in names:
        other = taken.setdefault(adapter_name(name), name)
        if other != name:
            raise SVFError(f"experts {other!r} and {name!r} have names that are the same for PEFT: rename one")
    return {name: adapter for adapter, name in taken.items()}


def check_same_base(experts: Sequence[Expert]) -> None:
    """Raises `SVFError`, naming two experts and what differs, unless all adapt the same weights of one base model."""
    for first, other in ((experts[0], other) for other in experts[1:]):
        names = f"experts {first.name} and {other.name}"
        if alone := sorted(first.z.keys() ^ other.z.keys()):
            owner = first if alone[0] in first.z else other
            raise SVFError(
                f"{names} have different targets (only {owner.name} adapts {alone[0]}): combine experts with the same "
                "target_modules"
            )
        for matrix, digest in first.fingerprints.items():
            if other.fingerprints[matrix] != digest or other.z[matrix].shape != first.z[matrix].shape:
                bases = [str(expert.config.base_model_name_or_path) for expert in (first, other)]
                named = f" ({bases[0]} and {bases[1]})" if bases[0] != bases[1] else ""
                raise SVFError(
                    f"{names} were trained on different base weights{named}; {matrix} is the first that differs: "
                    "combine experts of one base model, loaded in the same dtype"
                )
