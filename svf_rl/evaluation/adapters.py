"""Which adapters are compared, and what their results are called."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from svf_rl.errors import SVFError
from svf_rl.storage.path_names import path_names
from svf_rl.svf.expert import expert_folder, read_config

BASE = "base"

# Where in each weights file a sample is taken: hashing all of 16 GB would take longer than many an evaluation.
_SAMPLES, _SAMPLE_BYTES = 64, 4096
_WEIGHTS = ("*.safetensors", "*.bin")


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


def model_fingerprint(location: str, config: PretrainedConfig) -> str:
    """A hash of a model: its commit on the Hub, or else its configuration, and of each weights file the size and some
    samples, which other weights would not share."""
    commit = getattr(config, "_commit_hash", None)
    if commit is not None:
        return commit
    digest = hashlib.sha256((Path(location) / "config.json").read_bytes())
    for file in sorted(path for pattern in _WEIGHTS for path in Path(location).glob(pattern)):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            for i in range(_SAMPLES):
                stream.seek(size * i // _SAMPLES)
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _fingerprint(folder: Path, path: str) -> str:
    files = [folder / "adapter_config.json", *sorted(f for p in _WEIGHTS for f in folder.glob(f"adapter_model{p[1:]}"))]
    if len(files) < 2 or not files[0].is_file():
        raise SVFError(f"no adapter in {path}: it needs adapter_config.json and adapter_model.safetensors")
    read_config(folder)  # refuses a damaged one
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]
