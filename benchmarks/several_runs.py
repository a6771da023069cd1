"""Five seeds of the quickstart in one process against one after the other.

    python benchmarks/several_runs.py [--repeats ROUNDS] [--out results.json]

Each round runs `svf-rl train quickstart` with `seeds: [0, 1, 2, 3, 4]`, and then with each seed alone, in processes of
their own. Seconds are those of the clock and of the processors, from the start of a process to its end; ratios are
medians over the rounds. What both ways have trained is compared: `difference` is the largest of a trained value.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import arguments, hardware, report
from safetensors.torch import load_file

SEEDS = range(5)


def train(output: Path, *settings: str) -> dict[str, float]:
    """Seconds of one process."""
    command = [sys.executable, "-m", "svf_rl.train", "quickstart", *settings, "--output_dir", str(output)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"clock": time.perf_counter() - start, "processor": processor}


def one_round() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        together = train(folder, f"--seeds={list(SEEDS)}")
        alone = [train(folder / str(seed), f"--seed={seed}") for seed in SEEDS]
        differences = [_difference(folder / f"seed{seed}", folder / str(seed)) for seed in SEEDS]
    total = {kind: sum(run[kind] for run in alone) for kind in together}
    return {"together": together, "alone": total, "differences": differences}


def _difference(one: Path, other: Path) -> float:
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    return max((first[name] - second[name]).abs().max().item() for name in first if first[name].is_floating_point())


def main() -> None:
    args = arguments(__doc__, __file__)
    rounds = [one_round() for _ in range(args.repeats or 3)]
    ratios = {
        kind: statistics.median(each["together"][kind] / each["alone"][kind] for each in rounds)
        for kind in ("clock", "processor")
    }
    result = {"hardware": hardware("cpu"), "runs": len(SEEDS), "rounds": rounds, "ratios": ratios}
    rows = [
        {
            "seconds of the": kind,
            "together": f"{statistics.median(each['together'][kind] for each in rounds):.1f}",
            "one after the other": f"{statistics.median(each['alone'][kind] for each in rounds):.1f}",
            "ratio": f"{ratio:.3f}",
        }
        for kind, ratio in ratios.items()
    ]
    print("largest differences of z:", [f"{max(each['differences']):.1e}" for each in rounds])
    report(result, rows, args.out)


if __name__ == "__main__":
    main()
