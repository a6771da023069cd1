"""Five seeds of the quickstart in one process against one after the other.

    python benchmarks/several_runs.py [--repeats ROUNDS] [--out results.json]

Each round runs `svf-rl train quickstart` with `seeds: [0, 1, 2, 3, 4]`, and then with each seed alone, in processes of
their own, with one thread each and with one for each core. Seconds are those of the clock and of the processors, from
the start of a process to its end; ratios are medians over the rounds. What both ways have trained is compared:
`differences` are the largest of a trained value.
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
THREADS = sorted({1, os.cpu_count() or 1})


def train(threads: int, output: Path, *settings: str) -> dict[str, float]:
    """Seconds of one process."""
    command = [sys.executable, "-m", "svf_rl.train", "quickstart", *settings, "--output_dir", str(output)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"clock": time.perf_counter() - start, "processor": processor}


def one_round(threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        together = train(threads, folder, f"--seeds={list(SEEDS)}")
        alone = [train(threads, folder / str(seed), f"--seed={seed}") for seed in SEEDS]
        differences = [_difference(folder / f"seed{seed}", folder / str(seed)) for seed in SEEDS]
    total = {kind: sum(run[kind] for run in alone) for kind in together}
    return {"together": together, "alone": total, "differences": differences}


def _difference(one: Path, other: Path) -> float:
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    return max((first[name] - second[name]).abs().max().item() for name in first if first[name].is_floating_point())


def main() -> None:
    args = arguments(__doc__, __file__)
    rounds = [{threads: one_round(threads) for threads in THREADS} for _ in range(args.repeats or 3)]
    ratios = {
        threads: {
            kind: statistics.median(each[threads]["together"][kind] / each[threads]["alone"][kind] for each in rounds)
            for kind in ("clock", "processor")
        }
        for threads in THREADS
    }
    result = {"hardware": hardware("cpu"), "runs": len(SEEDS), "rounds": rounds, "ratios": ratios}
    rows = [
        {
            "threads": str(threads),
            "seconds of the": kind,
            "together": f"{statistics.median(each[threads]['together'][kind] for each in rounds):.1f}",
            "one after the other": f"{statistics.median(each[threads]['alone'][kind] for each in rounds):.1f}",
            "ratio": f"{ratio:.3f}",
        }
        for threads in THREADS
        for kind, ratio in ratios[threads].items()
    ]
    largest = [max(found["differences"]) for each in rounds for found in each.values()]
    print("largest differences of z:", [f"{one:.1e}" for one in largest])
    report(result, rows, args.out)


if __name__ == "__main__":
    main()
