"""Which adapters are compared, and what their results are called."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from svf_rl.errors import SVFError
from svf_rl.storage.path_names import path_names
from svf_rl.svf.expert import expert_folder
from svf_rl.svf.saved_config import read_config

BASE = "base"


@dataclass(frozen=True)
class Adapter:
    """A saved adapter: its name in tables and files, its folder, and a hash of its files."""

    label: str
    folder: Path
    fingerprint: str


def find_adapters(paths: Sequence[str]) -> list[Adapter]:
    """The adapters, each under the shortest end of its path that tells it from the others.

    Raises:
        SVFError: a path holds no adapter, or is named twice.
    """
    folders = [expert_folder(path) for path in paths]
    names = path_names(paths, taken=(BASE,), separator="-")
    return [Adapter(label, f, _fingerprint(f, path)) for label, f, path in zip(names, folders, paths, strict=True)]


def _fingerprint(folder: Path, path: str) -> str:
    names = ("adapter_config.json", "adapter_model.bin", "adapter_model.safetensors")
    files = [folder / name for name in names if (folder / name).is_file()]
    if len(files) < 2 or files[0].name != names[0]:
        raise SVFError(f"no adapter in {path}: it needs adapter_config.json and adapter_model.safetensors")
    read_config(folder)  # refuses one that is not valid
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]
