"""The quickstart's skills by evolution strategies against REINFORCE: accuracy, tokens, and peak memory.

    python benchmarks/evolution.py [--repeats SEEDS] [--out results.json]

Each run is a recipe as it stands, `quickstart` or `quickstart_evolution`, in a process of its own; the engine of both
computes with the trained model's factors. Tokens are those of prompts and completions in training. The memory is the
resident set of the process: at its peak, and what the training adds to it at its peak.
"""

import os
import resource
import statistics
import tempfile
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from common import arguments, hardware, peak_memory, report

OBJECTIVES = {"REINFORCE": "quickstart", "evolution strategies": "quickstart_evolution"}
SKILLS = ("math", "choice", "code")


def train(recipe: str, skill: str, seed: int) -> dict[str, Any]:
    """A process's life: one run."""
    from svf_rl.runs.run_folder import read_metrics
    from svf_rl.train import run
    from svf_rl.training.trainer import SVFReinforceTrainer

    inner, added = SVFReinforceTrainer.train, []

    def measured(trainer: SVFReinforceTrainer, *args: Any, **kwargs: Any) -> Any:
        with peak_memory("cpu") as peak:
            result = inner(trainer, *args, **kwargs)
        added.append(peak())
        return result

    SVFReinforceTrainer.train = measured
    with tempfile.TemporaryDirectory() as folder:
        settings = {"skill": skill, "seed": seed, "report_to": "none", "output_dir": folder}
        summary = run(recipe, [f"--{key}={value}" for key, value in settings.items()])
        tokens = max(line.values.get("num_tokens", 0) for line in read_metrics(Path(folder)))
    return {
        "recipe": recipe,
        "skill": skill,
        "seed": seed,
        "base_accuracy": summary.base_accuracy,
        "accuracy": summary.accuracy,
        "updates": summary.updates,
        "tokens": int(tokens),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "training_bytes": added[0],
    }


def main() -> None:
    args = arguments(__doc__, __file__)
    context, runs = get_context("spawn"), []
    for seed in range(args.repeats or 3):
        for skill in SKILLS:
            for recipe in OBJECTIVES.values():
                with context.Pool(1) as pool:
                    runs.append(pool.apply(train, (recipe, skill, seed)))
    result = {"hardware": hardware("cpu"), "runs": runs}
    report(result, [_row(runs, skill, name) for skill in SKILLS for name in OBJECTIVES], args.out)


def _row(runs: list[dict[str, Any]], skill: str, objective: str) -> dict[str, str]:
    own = [run for run in runs if (run["skill"], run["recipe"]) == (skill, OBJECTIVES[objective])]
    mean = {key: statistics.mean(run[key] for run in own) for key in own[0] if key not in ("recipe", "skill")}
    return {
        "skill": skill,
        "objective": objective,
        "before": f"{mean['base_accuracy']:.3f}",
        "after": f"{mean['accuracy']:.3f}",
        "tokens": f"{mean['tokens']:,.0f}",
        "peak (MiB)": f"{mean['peak_bytes'] / 2**20:.0f}",
        "training (MiB)": f"{mean['training_bytes'] / 2**20:.0f}",
    }


if __name__ == "__main__":
    main()
