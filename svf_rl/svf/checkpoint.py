"""Decompose a checkpoint on disk, matrix by matrix, into the factor cache.

The model itself is built on the meta device only, to learn which layers the targets match; its weights are read from
the files one by one, so that memory holds one matrix and its factors however large the model is.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.pytorch_utils import Conv1D

from svf_rl.errors import SVFError, one_line
from svf_rl.storage.disk_errors import disk_errors
from svf_rl.storage.files import remove_partials, write_file
from svf_rl.storage.loading_errors import check_no_adapter
from svf_rl.storage.locks import lock
from svf_rl.svf.cache import REMEDY, FactorCache
from svf_rl.svf.decompose import ALGORITHM_VERSION, fingerprint, thin_svd
from svf_rl.svf.sharding import without_values
from svf_rl.svf.stored_weights import StoredWeights, local_folder
from svf_rl.svf.targets import find_targets, logical_weight, target_regex

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class IndexEntry:
    """One adapted module: the content of its weight, its logical shape (out, in), and the cache file's name."""

    fingerprint: str
    shape: tuple[int, int]
    file: str


@dataclass(frozen=True)
class Index:
    """What one call of `decompose_checkpoint` covers, and its figures for the command line."""

    modules: dict[str, IndexEntry]  # by module path; equal weights share a file
    stored: dict[str, str]  # what the files call each of these modules, with the prefix that they may lack
    path: Path  # the index file
    seconds: float
    bytes: int  # of all factors
    cached: int  # modules that needed no decomposition


def decompose_checkpoint(
    model: str,
    targets: str = "mlp",
    dtype: torch.dtype | str | None = None,
    cache: FactorCache | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Index:
    """Put the factors of every targeted matrix of a checkpoint into the cache, and write an index there.

    Each weight is cast to `dtype` before it is decomposed, since the loaded model will have this type. Matrices
    already cached are skipped, so an interrupted call resumes at the next one; a second process waits for the first.

    Args:
        model: a local folder with a config and weights, or a name on the Hugging Face Hub.
        targets: `mlp`, `attention`, `mlp+attention` or a regular expression of module paths.
        dtype: dtype of the loaded model and of the stored U and Vt; by default the one that the config names, or else
            the one that the files hold.
        device: where the decompositions run.

    Raises:
        SVFError: no such model, no weights, a target missing in the files, a quantised or damaged weight, nothing
            matched, or a cache that cannot be written.
    """
    started = time.perf_counter()
    cache = cache or FactorCache()
    folder, commit = local_folder(model, revision)
    skeleton = _skeleton(model, folder, trust_remote_code)
    targeted = find_targets(skeleton, targets)
    stored = StoredWeights(model, folder, getattr(skeleton, "base_model_prefix", ""))
    names = stored_names(skeleton, stored.names, [f"{name}.weight" for name in targeted])
    for name in names.values():  # all are there before the first is decomposed
        stored.find(name)
    chosen = dtype_of_model(dtype, skeleton, stored, next(iter(names.values())))

    modules: dict[str, IndexEntry] = {}
    cached = 0
    content: dict[str, Any] = {
        "model": model,
        "revision": commit,
        "dtype": str(chosen).removeprefix("torch."),
        "targets": target_regex(targets),
        "algorithm_version": ALGORITHM_VERSION,
    }
    # readable and unique: the model's last name and a hash of everything that tells two indices apart
    digest = hashlib.sha256(json.dumps(list(content.values())).encode()).hexdigest()
    path = cache.root / f"index-{Path(model).name}-{digest[:12]}.json"
    with ExitStack() as stack:
        with disk_errors(cache.root, REMEDY):
            cache.root.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # read-only: what is cached can be used, and the first `store` says it
            file = path.with_suffix(".lock")
            waiting = f"another process is decomposing this model; waiting for {file}"
            stack.enter_context(lock(file, cache.root, seconds=None, notice=waiting))
        remove_partials(cache.root, older_than=3600.0)  # a file is written in seconds: an old one has no owner
        with tqdm(targeted.items(), unit="matrix", disable=not progress) as bar:
            for name, module in bar:
                bar.set_description(name)
                # the weight is gone before the next one is read
                modules[name], was_cached = _ensure(
                    cache, read_weight(stored, names[f"{name}.weight"], module).to(chosen), device, name
                )
                cached += was_cached
        content["modules"] = {name: asdict(entry) for name, entry in modules.items()}
        text = (json.dumps(content, indent=1) + "\n").encode()
        if not path.is_file() or path.read_bytes() != text:  # a complete cache is never rewritten
            write_file(path, text, REMEDY)
    size = sum((cache.root / file).stat().st_size for file in {entry.file for entry in modules.values()})
    prefix = f"{getattr(skeleton, 'base_model_prefix', '')}."
    keys = {name: names[f"{name}.weight"].removesuffix(".weight") for name in modules}
    renamed = {name: name if key in (name.removeprefix(prefix), prefix + name) else key for name, key in keys.items()}
    return Index(modules, renamed, path, time.perf_counter() - started, size, cached)


def _ensure(cache: FactorCache, weight: Tensor, device: str | torch.device, name: str) -> tuple[IndexEntry, bool]:
    """The entry of a weight (out, in) whose factors are in the cache now, and whether they were before."""
    key = fingerprint(weight)
    # `load`, not `contains`: a damaged file must be found now, not when training starts.
    was_cached = cache.load(key, weight.dtype, weight=weight) is not None
    if not was_cached:
        try:
            factors = thin_svd(weight.to(device))
        except SVFError as error:
            raise SVFError(f"{name}: {error}") from error
        cache.store(key, factors.to(weight.dtype))
    return IndexEntry(key, (weight.shape[0], weight.shape[1]), cache.path(key, weight.dtype).name), was_cached


def _skeleton(model: str, folder: Path, trust_remote_code: bool) -> nn.Module:
    """The model without values, on the meta device."""
    check_no_adapter(str(folder))
    if not (folder / "config.json").is_file():
        raise SVFError(f"{model} has no config.json: name the folder of a transformers checkpoint")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        with without_values():
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (ValueError, OSError) as error:
        raise SVFError(
            f"{model} is not a causal language model that transformers can build: {one_line(error)}"
        ) from error


def dtype_of_model(
    dtype: torch.dtype | str | None, skeleton: nn.Module, stored: StoredWeights, name: str
) -> torch.dtype:
    """As `from_pretrained` chooses: the caller's, the config's, the files'."""
    if dtype is None:
        dtype = getattr(getattr(skeleton, "config", None), "dtype", None)
    if dtype is None:
        dtype = stored.read(name).dtype
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype.removeprefix("torch."), dtype)
    if dtype not in _DTYPES:
        raise SVFError(f"dtype {dtype} is not one of float32, bfloat16, float16, float64")
    assert isinstance(dtype, torch.dtype)
    return dtype


def stored_names(skeleton: nn.Module, stored: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
    """What the files call each parameter of the model, by transformers' own renaming; what it renames to none of
    `wanted` keeps its name."""
    transforms = get_model_conversion_mapping(skeleton)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    live = skeleton.state_dict()
    names = {name: name for name in wanted}
    for key in stored:
        name, _ = rename_source_key(key, renamings, converters, skeleton.base_model_prefix, live)
        if name in names:
            names[name] = key
    return names


def read_weight(stored: StoredWeights, name: str, module: nn.Module) -> Tensor:
    """A weight that the files call `name`, of a module, in logical orientation (out, in)."""
    weight, (path, key) = stored.read(name), stored.find(name)
    if weight.dtype not in _DTYPES:
        raise SVFError(f"{key} is quantised ({weight.dtype}); decompose the unquantised checkpoint")
    if isinstance(module, Conv1D):
        weight = weight.T
    expected = logical_weight(module).shape
    if weight.shape != expected:
        raise SVFError(
            f"{key} in {path} has shape (out, in) {tuple(weight.shape)}, but the config asks for {tuple(expected)}"
        )
    return weight
