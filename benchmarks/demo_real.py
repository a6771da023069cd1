"""What `make demo-real`, and the same with other seeds, came to: accuracies, rewards by update, and seconds.

    make demo-real
    accelerate launch --config_file accelerate_configs/cpu.yaml svf_rl/train.py recipes/smollm2.yaml --seed 1 \\
        --output_dir runs/smollm2-1      # and svf-rl eval with --out runs/smollm2-1/sampled, as the Makefile has it
    python benchmarks/demo_real.py runs/smollm2 runs/smollm2-1 ... [--out results.json]

It reads the folders of the runs, each with the folder `sampled` of the evaluation at temperature 1; the table of it is
in docs/guides/what-to-expect.md.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from common import hardware

from svf_rl.runs.run_folder import read_metrics, read_summary


def read_run(folder: Path) -> dict[str, Any]:
    """A run as it is kept."""
    summary = read_summary(folder)
    sampled = json.loads((folder / "sampled/summary.json").read_text())
    base, trained = (result["accuracy"] for result in sampled["results"])
    return {
        "seed": summary.seed,
        "items": summary.items,
        "greedy": {"before": summary.base_accuracy, "after": summary.accuracy},
        "sampled": {"before": base["value"], "after": trained["value"], "items": sampled["results"][0]["items"]},
        "reward": [line.values["reward"] for line in read_metrics(folder) if "reward" in line.values],
        "seconds": {**summary.seconds, "sampled": sampled["seconds"]},
        "git_commit": summary.git_commit,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/demo_real.json")
    given = parser.parse_args()
    runs = [read_run(folder) for folder in given.folders]
    given.out.write_text(json.dumps({"hardware": hardware("cpu"), "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
