"""Cache of factors on disk: one safetensors file for each matrix, named by the content of its weight.

Key: (fingerprint of the weight, storage dtype, algorithm version). Files are written whole or not at all, and their
tensors carry a checksum, so that a truncated or altered file is never used. Where the weight is at hand, the factors
are compared with it too: a file that is sound in itself may hold those of something else.
"""

import contextlib
import os
import warnings
from pathlib import Path

import safetensors.torch
import torch
from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from torch import Tensor

from svf_rl.storage.files import write_file
from svf_rl.svf.decompose import ALGORITHM_VERSION, BLOCK, Factors, sha256_of_blocks

REMEDY = "free some space or set SVF_RL_CACHE to a writable folder"
"""Where the factor cache cannot be written."""


def default_cache_dir() -> Path:
    """`$SVF_RL_CACHE`, or `svf_rl` in the folder of the Hugging Face caches."""
    chosen = os.environ.get("SVF_RL_CACHE")
    return Path(chosen).expanduser() if chosen else Path(constants.HF_HOME) / "svf_rl"


class FactorCache:
    """Factors by content of the weight, in the folder `root` (default: `default_cache_dir()`)."""

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root) if root is not None else default_cache_dir()

    def path(self, fingerprint: str, dtype: torch.dtype) -> Path:
        """The file that holds, or would hold, these factors."""
        return self.root / f"{fingerprint}-{_name(dtype)}-v{ALGORITHM_VERSION}.safetensors"

    def contains(self, fingerprint: str, dtype: torch.dtype) -> bool:
        """Whether the file exists. Only `load` tells whether it is intact."""
        return os.path.isfile(self.path(fingerprint, dtype))  # noqa: PTH113  (as in `load`)

    def load(
        self,
        fingerprint: str,
        dtype: torch.dtype,
        device: str | torch.device = "cpu",
        weight: Tensor | None = None,
    ) -> Factors | None:
        """The stored factors (U and Vt in `dtype`, s in fp32), or None where there are none, they are damaged, or not
        those of `weight` (out, in), where that is given.

        Such a file is removed, with a warning that names it, so that the next `store` replaces it.
        """
        path = self.path(fingerprint, dtype)
        if not os.path.isfile(path):  # noqa: PTH113  (Path raises for a folder that may not be looked into)
            return None
        try:
            factors = _read(path, fingerprint, dtype).to(dtype, device)
            if weight is not None and not describes(factors, weight):
                raise SafetensorError("its factors do not multiply to the weight")
        except (SafetensorError, OSError) as error:
            warnings.warn(f"factor cache file {path} is not usable ({error}): decomposing again", stacklevel=2)
            with contextlib.suppress(OSError):  # in a read-only cache the file stays there, unused
                path.unlink(missing_ok=True)
            return None
        return factors

    def map_file(self, fingerprint: str, dtype: torch.dtype, weight: Tensor | None = None) -> Factors | None:
        """As `load`, but the factors stay in the file: they take no memory of the process, and the processes of one
        machine share the cached pages. They were intact when this was called."""
        if self.load(fingerprint, dtype, weight=weight) is None:
            return None
        with safe_open(self.path(fingerprint, dtype), framework="pt") as file:
            return Factors(*(file.get_tensor(name) for name in ("U", "s", "Vt")))

    def store(self, fingerprint: str, factors: Factors) -> Path:
        """Write factors already rounded by `Factors.to`; their dtype is part of the key. Returns the file's path.

        Raises:
            SVFError: the folder is read-only, full or not a folder. Nothing is left behind.
        """
        path = self.path(fingerprint, factors.U.dtype)
        tensors = {name: getattr(factors, name).contiguous().cpu() for name in ("U", "s", "Vt")}
        metadata = {
            "fingerprint": fingerprint,
            "algorithm_version": str(ALGORITHM_VERSION),
            "sha256": _checksum(tensors),
        }
        write_file(path, safetensors.torch.save(tensors, metadata=metadata), REMEDY)
        return path


@torch.no_grad()
def describes(factors: Factors, weight: Tensor) -> bool:
    """Whether `U diag(s) Vᵀ x` is `W x`, up to the rounding of the storage type, for random vectors `x` that nobody can
    know beforehand. (Neither is built: one block of rows at a time is converted.)"""
    # on GPUs fp32 products may be TF32's
    kind = torch.float32 if weight.device.type == "cpu" else torch.float64

    def times(matrix: Tensor, x: Tensor) -> Tensor:
        return torch.cat([rows.to(kind) @ x for rows in matrix.split(1024)])

    if (factors.U.shape[0], factors.Vt.shape[1]) != weight.shape:
        return False
    factors, draw = factors.to(factors.U.dtype, weight.device), torch.Generator()
    draw.seed()
    x = torch.randn(weight.shape[1], 4, generator=draw).to(weight.device, kind)
    error = times(factors.U, factors.s[:, None].to(kind) * times(factors.Vt, x)) - times(weight, x)
    squares = torch.stack([rows.to(kind).square().sum() for rows in weight.split(1024)])
    tolerance = max(1e-4, 4 * torch.finfo(factors.U.dtype).eps)
    return bool(error.norm() <= tolerance * 2 * squares.sum().sqrt())  # the size of the four W x, on average


def _read(path: Path, fingerprint: str, dtype: torch.dtype) -> Factors:
    """Raises `SafetensorError` also for a file that can be parsed but is not what was stored."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if set(file.keys()) != {"U", "s", "Vt"} or metadata.get("fingerprint") != fingerprint:
            raise SafetensorError("it holds something else")
        # Copied out of the memory map first: the verified values are then the ones used, even if the file changes.
        tensors = {name: file.get_tensor(name).clone() for name in ("U", "s", "Vt")}
    U, s, Vt = tensors["U"], tensors["s"], tensors["Vt"]
    if metadata.get("sha256") != _checksum(tensors):
        raise SafetensorError("its checksum does not match")
    r = s.numel()
    shapes_fit = U.dim() == 2 and Vt.dim() == 2 and U.shape[1] == Vt.shape[0] == r == min(U.shape[0], Vt.shape[1])
    if not shapes_fit or (U.dtype, s.dtype, Vt.dtype) != (dtype, torch.float32, dtype):
        raise SafetensorError("its shapes or dtypes do not fit")
    return Factors(U, s, Vt)


def _checksum(tensors: dict[str, Tensor]) -> str:
    """Hex SHA-256 of names, dtypes, shapes and bytes."""
    head = " ".join(f"{name} {_name(t.dtype)} {tuple(t.shape)}" for name, t in tensors.items())
    blocks = [torch.frombuffer(bytearray(head.encode()), dtype=torch.uint8)]
    for tensor in tensors.values():
        blocks.extend(tensor.flatten().split(BLOCK))
    return sha256_of_blocks(blocks).hex()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
