"""Sizes of memory as text."""

import re

from svf_rl.errors import SVFError

_UNITS = {
    "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip


def parse_memory(text: str) -> int:
    """
    Bytes of a size such as `80GB` (10⁹ bytes) or `80GiB` (2³⁰ bytes); capitals and spaces do not matter.

    Raises:
        SVFError: no positive number with a known unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise SVFError(
            f"--gpu-memory {text!r} is not a valid size: give a number and MB, GB, TB, MiB, GiB or TiB, as in 80GB"
        )
    size = int(float(match[1]) * _UNITS[match[2].upper()])
    if size <= 0:
        raise SVFError(f"--gpu-memory must be more than 0, not {text}")
    return size


def gib(size: int) -> str:
    """Bytes in units of 2³⁰, with two decimals, or four where the number is small."""
    value = size / 2**30
    return f"{value:.2f}" if value == 0 or abs(value) >= 0.1 else f"{value:.4f}"
