"""Seconds a matrix: thin_svd against torch.svd (fp32) and torch.linalg.svd (fp64), and a start from the factor cache.

    python benchmarks/decompose.py [--device cuda] [--shape 8b] [--out results.json]

All contestants take turns in one run on the same matrix, and the median counts, so that other load on the machine
hits them alike. "Cold start" is what a run with an empty cache does for each matrix: fingerprint of the live weight,
decomposing, storing. "Cached start" is what the next run does: fingerprint, reading the file, verifying its checksum,
moving the factors to the device; the file is in the page cache, as it is after any recent use. Hashing, about 1.5 GB/s
a core, is nearly all of it.

A contestant that takes more than `SLOW` seconds in the first turn, which warms up libraries, sits out the later ones,
and that time counts.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import gpu

from svf_rl.svf.cache import FactorCache
from svf_rl.svf.decompose import fingerprint, thin_svd

SLOW = 5.0

SHAPES = {
    "small": [(1024, 2816), (2816, 1024), (1024, 1024)],  # a 4-layer Llama with hidden size 1024
    "8b": [(4096, 14336), (14336, 4096), (4096, 4096)],  # Llama-3-8B
}


def seconds(function: Callable[[], Any], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device, repeats: int, root: str
) -> dict[str, Any]:
    """One row of the table for a random weight `shape` = (out, in)."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device=device, dtype=dtype)
    cache = FactorCache(root)
    key = fingerprint(weight)

    def cold_start() -> None:
        cache.store(fingerprint(weight), thin_svd(weight).to(dtype))

    contestants: dict[str, Callable[[], Any]] = {
        "thin_svd": lambda: thin_svd(weight),
        "torch.svd fp32": lambda: torch.svd(weight.float()),
        "torch.linalg.svd fp64": lambda: torch.linalg.svd(weight.double(), full_matrices=False),
        "cold start": cold_start,
        "fingerprint": lambda: fingerprint(weight),
        "load": lambda: cache.load(key, dtype, device),
        "cached start": lambda: cache.load(fingerprint(weight), dtype, device),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, function in contestants.items():
            if turn > 0 and times[name] and times[name][0] > SLOW:
                continue
            elapsed = seconds(function, device)
            if turn > 0 or elapsed > SLOW:  # the first turn warms up libraries and fills the cache
                times[name].append(elapsed)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    factors = thin_svd(weight)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    exact = weight.double()
    error = ((factors.U * factors.s) @ factors.Vt - exact).norm() / exact.norm()
    return {
        "shape": list(shape),
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "turns_counted": {name: len(values) for name, values in times.items()},
        "cached_speedup": statistics.median(times["cold start"]) / statistics.median(times["cached start"]),
        "relative_error": error.item(),
        "peak_gpu_bytes": peak,
    }


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        about = gpu()
        return f"{about['gpu']}, driver {about['driver']}, CUDA {about['cuda']}"
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(names)} cores, {torch.get_num_threads()} threads used"


def table(rows: list[dict[str, Any]]) -> str:
    names = [name for name in rows[0]["seconds"] if name not in ("fingerprint", "load")]
    lines = [
        f"| matrix (out × in) | {' | '.join(f'{name} (s)' for name in names)} | cached start is faster by |",
        "|---|" + "---:|" * (len(names) + 1),
    ]
    for row in rows:
        cells = " | ".join(f"{row['seconds'][name]:.3f}" for name in names)
        lines.append(f"| {row['shape'][0]} × {row['shape'][1]} | {cells} | {row['cached_speedup']:.0f} × |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: float32 on the CPU, else bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("decompose.json"))
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    dtype_name = arguments.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    rows: list[dict[str, Any]] = []
    result = {
        "hardware": hardware(device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "dtype": dtype_name,
        "repeats": arguments.repeats,
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for shape in SHAPES[arguments.shape]:
        with tempfile.TemporaryDirectory() as root:
            rows.append(measure(shape, getattr(torch, dtype_name), device, arguments.repeats, root))
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['hardware']}, torch {torch.__version__}, {dtype_name}, median of {arguments.repeats}\n")
    print(table(rows))


if __name__ == "__main__":
    main()
