"""The files of a checkpoint that torch has pickled. They are read as plain data before anything else reads them:
DeepSpeed unpickles its own without a limit, and a checkpoint of somebody else could run code."""

import pickle
from enum import Enum
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct

from svf_rl.errors import SVFError, one_line

# What DeepSpeed's files hold besides tensors and plain values.
_DEEPSPEED = {
    "deepspeed.runtime.fp16.loss_scaler": ("LossScaler", "DynamicLossScaler"),
    "deepspeed.utils.tensor_fragment": ("fragment_address",),
}
# By torch's reader, of other classes, other files and damaged ones.
_REFUSALS = (
    pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, OverflowError,
)  # fmt: skip
_NUMPY = [_reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32))]  # the state of its random generator


def pickled_files(folder: Path, deepspeed: bool) -> list[Path]:
    """
    The files of the checkpoint in `folder` that a run unpickles when it resumes.

    Raises:
        SVFError: the file in which DeepSpeed looks up its folder names another place.
    """
    files = sorted([*folder.glob("*.pt"), *folder.glob("*.pth")])
    latest = folder / "latest"
    if deepspeed and latest.is_file():
        name = latest.read_text(encoding="utf-8", errors="replace").strip()
        if name != Path(name).name or name in ("", "..") or (folder / name).is_symlink():
            raise SVFError(f"{latest} names {name!r}, which is no folder of this checkpoint: it is not a run's own")
        files += sorted((folder / name).glob("*.pt"))
    return files


def check_plain(files: list[Path], deepspeed: bool) -> None:
    """Raises `SVFError` for a file that holds anything but tensors, plain values and what DeepSpeed keeps, or is
    damaged. Nothing in it is run."""
    allowed: list[Any] = list(_NUMPY)
    if deepspeed:
        stage = import_module("deepspeed.runtime.zero.config").ZeroStageEnum
        allowed += [stage, (partial(_member, stage), "builtins.getattr")]
        allowed += [getattr(import_module(module), name) for module, names in _DEEPSPEED.items() for name in names]
    for file in files:
        try:
            with torch.serialization.safe_globals(allowed):
                torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except _REFUSALS as error:
            raise SVFError(
                f"{file} holds more than tensors and plain values, and is not read, since that could run code: resume "
                f"from a checkpoint of your own ({one_line(error, 150)})"
            ) from error


def _member(kind: type[Enum], owner: object, name: object) -> Enum:
    """What `getattr` of a file stands for: Python up to 3.11.3 writes a member of an enumeration as one."""
    if owner is not kind or name not in kind.__members__:
        raise pickle.UnpicklingError("getattr of something else than DeepSpeed's stage")
    return kind[str(name)]
