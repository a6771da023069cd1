"""Tables of `benchmarks/methods.py`: what each method gains on a real model, at its best learning rate."""

from typing import Any

METHODS = {
    "svf": "SVF",
    "lora-16": "LoRA, rank 16",
    "lora-1": "LoRA, rank 1",
    "dora-16": "DoRA, rank 16",
    "band-1": "a banded core (`core: band:1`)",
    "block-32": "a dense core of the top 32 directions (`core: block:32`)",
    "biases": "trained biases",
    "projected-1000": "1,000 values for the model (`core: projected:1000`)",
    "projected-13": "13 values (`core: projected:13`)",
    "top-64": "SVF on the top 64 values of each matrix (`core: top:64`)",
    "bottom-64": "SVF on the bottom 64 (`core: bottom:64`)",
    "full": "all of the MLPs",
    "evolution": "SVF by evolution strategies",
    "next-token": "SVF by next-token training on right answers",
}
SETTINGS = {
    "svf": "8 prompts × 8 completions",
    "svf-16-prompts": "16 × 8",
    "svf-16-completions": "8 × 16",
    "svf-kl": "8 × 8, KL term of 0.05",
    "svf-normalized": "8 × 8, advantages divided by their standard deviation",
    "svf-decay": "8 × 8, learning rate falling to 0",
    "shuffled-reward": "8 × 8, rewards shuffled over the batch",
    "band-1": "a banded core, 8 × 8",
    "band-1-normalized": "the same, advantages divided by their standard deviation",
}
"""The same SVF, and a banded core, with other settings of the trainer."""
Runs = list[dict[str, Any]]


def methods(result: dict[str, Any]) -> list[dict[str, str]]:
    """A row for each method, with the accuracies of its best learning rate."""
    return [{"method": METHODS[name]} | _found(runs, values=True) for name, runs in _of(result, METHODS).items()]


def settings(result: dict[str, Any]) -> list[dict[str, str]]:
    """A row for each setting of the trainer."""
    return [{"24 updates of": SETTINGS[name]} | _found(runs) for name, runs in _of(result, SETTINGS).items()]


def best_rate(runs: Runs) -> float:
    """
    The learning rate of one method's `runs` that was better than most others on validation rows. Two are
    compared on the seeds that both were tried with: a mean over other seeds would compare the seeds.
    """
    found: dict[float, dict[int, float]] = {}
    for run in runs:
        found.setdefault(run["rate"], {})[run["seed"]] = run["validation"]

    def better_than(rate: float) -> int:
        return sum(
            sum(found[rate][seed] - found[other][seed] for seed in found[rate].keys() & found[other].keys()) > 0
            for other in found
        )

    return max(found, key=better_than)


def _of(result: dict[str, Any], names: dict[str, str]) -> dict[str, Runs]:
    """The runs of each method that has any to its end. Raises `KeyError` for a method that no table names."""
    runs: dict[str, Runs] = {name: [] for name in [*METHODS, *SETTINGS]}
    for run in result["runs"]:
        runs[run["method"]] += [run] if "test" in run else []
    return {name: runs[name] for name in names if runs[name]}


def _found(runs: Runs, values: bool = False) -> dict[str, str]:
    best, tried = best_rate(runs), {run["rate"] for run in runs}
    of_best = sorted((run for run in runs if run["rate"] == best), key=lambda run: run["seed"])
    counts = {"trained values": f"{runs[0]['trained_values']:,}"} if values else {}
    return counts | {
        "learning rate": f"{of_best[0]['keys']['learning_rate']:.2g} of {len(tried)}",
        "before": f"{100 * of_best[0]['base']:.1f}",
        "after, by seed": ", ".join(f"{100 * run['test']:.1f}" for run in of_best),
    }
