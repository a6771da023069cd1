"""The weights of a checkpoint on disk, one at a time."""

import os
import pickle
import zipfile
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from svf_rl.errors import SVFError, one_line
from svf_rl.storage.json_files import read_json
from svf_rl.storage.loading_errors import loading_error

_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"


class StoredWeights:
    """The weights of a checkpoint on disk, read one by one under the names of a loaded model, whose `base_model_prefix`
    the files may lack or add: safetensors, or where there are none files of `torch.save`. Raises `SVFError` for a
    `folder` without either; `model` is the name in errors."""

    def __init__(self, model: str, folder: Path, prefix: str = ""):
        self._model, self._prefix = model, prefix
        # tensor name → the file that holds it
        self._shards: dict[str, Path]
        for name in (_SAFE, _PICKLED):
            index, single = folder / f"{name}.index.json", folder / name
            if index.is_file():
                files = read_json(index, "download or copy it again", {"weight_map": dict})["weight_map"]
                if not all(isinstance(file, str) for file in files.values()):
                    raise SVFError(f"{index} names a file that is no text: download or copy it again")
                self._shards = {key: folder / file for key, file in files.items()}
                return
            if single.is_file():
                self._shards = dict.fromkeys(_names_in(single), single)
                return
        raise SVFError(f"{model} holds no {_SAFE} and no {_PICKLED}: name a folder with a model's weights")

    @property
    def names(self) -> list[str]:
        """What the files call their tensors."""
        return list(self._shards)

    def holds(self, name: str) -> bool:
        """Whether the files have the parameter `name`."""
        return any(key in self._shards for key in self._keys(name))

    def _keys(self, name: str) -> tuple[str, ...]:
        return name, name.removeprefix(f"{self._prefix}."), f"{self._prefix}.{name}"

    def find(self, name: str) -> tuple[Path, str]:
        """The file of the parameter `name` (`model.layers.0.mlp.up_proj.weight`), and its name there. Raises `SVFError`
        where the files lack it."""
        for key in self._keys(name):
            if key in self._shards:
                return self._shards[key], key
        raise SVFError(
            f"{self._model}: the files lack {name}, which the targets match; the checkpoint is incomplete or renamed"
        )

    def read(self, name: str) -> Tensor:
        """The parameter `name` as it is stored: a map of the file, not a copy. Raises `SVFError` where the files lack
        it, or are damaged."""
        path, key = self.find(name)
        if path.suffix == ".bin":
            tensors = _map_pickled(path)
            if key not in tensors:
                raise SVFError(f"{path} lacks {key}, which its index names: download it again")
            return tensors[key]
        with _open(path) as file:
            try:
                return file.get_tensor(key)
            except SafetensorError as error:
                raise SVFError(f"{path} is damaged at {key} ({error}): download it again") from error


def local_folder(model: str, revision: str | None) -> tuple[Path, str | None]:
    """Folder of the checkpoint's files and, for a Hub model, the commit that they belong to."""
    if os.path.isdir(model):  # noqa: PTH112  (Path raises for a name that is too long)
        return Path(model), None
    try:
        # Not "*.safetensors": some repositories hold the whole model a second time (consolidated.safetensors).
        patterns = ["*.json", "model*.safetensors", "*.bin.index.json"]
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
        if not any(folder.glob("model*.safetensors")):
            snapshot_download(model, revision=revision, allow_patterns=["pytorch_model*.bin"])
    except (OSError, HFValidationError) as error:
        raise loading_error("model", model, error, revision) from error
    return folder, folder.name


def _names_in(path: Path) -> list[str]:
    if path.suffix == ".bin":
        return list(_map_pickled(path))
    with _open(path) as file:
        return list(file.keys())


def _map_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of `torch.save`, mapped; all of them are read where it has the format of before 2020.
    Nothing that it holds is run. Raises `SVFError` for one that holds anything else than tensors by name."""
    try:
        tensors = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, LookupError) as error:
        raise SVFError(
            f"{path} cannot be read as weights alone ({one_line(error)}): download or copy it again"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise SVFError(f"{path} holds something else than the weights of a model")
    return tensors


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise SVFError(f"{path} cannot be read ({error}): download or copy it again") from error
