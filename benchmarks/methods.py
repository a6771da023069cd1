"""What each method gains on a real model (SmolLM2-135M-Instruct), at several learning rates: whole runs of the trainer.

    python benchmarks/methods.py --jobs 2
    python benchmarks/methods.py --methods svf lora-16 --seeds 0 1 2 3 4 --rates 1 --task word_sorting

Each method has three learning rates, a factor of two apart: 1 in `--rates` is the middle one, .5 and 2 the others. A
run that is in the results already is not made again, so that the same command goes on where it was stopped, and with
`--minutes` it stops by itself. Runs are compared by accuracy on validation rows; test rows are reported.
"""

import argparse
import json
import shutil
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import redirect_stderr, redirect_stdout
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from common import hardware

from svf_rl.errors import SVFError
from svf_rl.runs.run_folder import read_run
from svf_rl.train import run as train

RECIPE = Path(__file__).parents[1] / "recipes" / "smollm2.yaml"
MLP = "[gate_proj, up_proj, down_proj]"
LORA = {"adapter": "lora", "lora_target_modules": MLP, "max_grad_norm": 1.0}
# an update of all others has 8 prompts with 8 completions each
_BATCH = ["per_device_train_batch_size=32", "gradient_accumulation_steps=2"]
_TWICE = {"per_device_train_batch_size": 128, "gradient_accumulation_steps": 1}
_CONTROL = "[{{name: exact_match, weight: 0}}, {{name: control, kind: {}}}]"
METHODS: dict[str, dict[str, Any]] = {
    "svf": {"learning_rate": 4e-3},
    "lora-16": {**LORA, "lora_r": 16, "lora_alpha": 32, "learning_rate": 5e-4},
    "lora-1": {**LORA, "lora_r": 1, "lora_alpha": 32, "learning_rate": 5e-4},
    "dora-16": {**LORA, "lora_r": 16, "lora_alpha": 32, "lora_use_dora": True, "learning_rate": 5e-4},
    "full": {"adapter": "full", "learning_rate": 1e-5},
    "top-64": {"core": "top:64", "learning_rate": 8e-3},
    "bottom-64": {"core": "bottom:64", "learning_rate": 8e-3},
    "band-1": {"core": "band:1", "learning_rate": 4e-3},
    "block-32": {"core": "block:32", "learning_rate": 4e-3},
    "projected-13": {"core": "projected:13", "learning_rate": 3e-2},
    "projected-1000": {"core": "projected:1000", "learning_rate": 3e-2},
    "biases": {"biases": True, "learning_rate": 4e-3},
    "evolution": {"objective": "evolution_strategies", "evolution_sigma": 0.05, "learning_rate": 4e-3},
    "next-token": {"objective": "next_token", "learning_rate": 4e-3},
    # SVF with other settings of the trainer
    "svf-normalized": {"normalize_advantages": True, "learning_rate": 4e-3},
    "svf-16-prompts": {**_TWICE, "learning_rate": 4e-3},
    "svf-16-completions": {**_TWICE, "num_generations": 16, "learning_rate": 4e-3},
    "svf-kl": {"beta": 0.05, "learning_rate": 4e-3},
    "svf-decay": {"lr_scheduler_type": "linear", "learning_rate": 6e-3},
    "band-1-normalized": {"core": "band:1", "normalize_advantages": True, "learning_rate": 4e-3},
    # what is right decides the accuracies, and is paid nothing
    "random-reward": {"rewards": _CONTROL.format("random"), "learning_rate": 4e-3},
    "shuffled-reward": {"rewards": _CONTROL.format("shuffled"), "learning_rate": 4e-3},
}
"""Keys of the recipe that a method changes, with the middle one of its learning rates."""
_SHOWN = ("task", "method", "rate", "seed", "base", "validation", "test", "seconds", "failed")
CURVES = ("reward", "entropy", "kl", "grad_norm", "completions/mean_length")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--rates", nargs="+", type=float, default=[0.5, 1.0, 2.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--task", default="word_sequence_reversal")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the recipe, for all runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after that")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="which is named in the results")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "methods.json")
    given = parser.parse_args()
    there = json.loads(given.out.read_text()) if given.out.is_file() else {"runs": []}
    done = {_key(run) for run in there["runs"]}
    # a seed and a rate of all methods before the next ones: what is stopped early has compared all of them
    wanted = [
        {"task": given.task, "method": method, "rate": rate, "seed": seed}
        for seed in given.seeds
        for rate in sorted(given.rates, key=lambda rate: abs(rate - 1))
        for method in given.methods
    ]
    there |= {"hardware": hardware(given.device), "recipe": RECIPE.name, "set": given.set, "jobs": given.jobs}
    end = time.monotonic() + 60 * given.minutes

    # processes that make one run after another: libraries and the device are made ready once in each
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        waiting = iter([wish for wish in wanted if _key(wish) not in done])
        running = {pool.submit(_run, wish, given.set) for wish in islice(waiting, given.jobs)}
        while running:
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for run in (each.result() for each in ended):
                there["runs"].append(run)
                print({key: run[key] for key in _SHOWN if key in run}, flush=True)
            given.out.write_text(json.dumps(there, indent=1) + "\n")
            if time.monotonic() < end:
                running |= {pool.submit(_run, wish, given.set) for wish in islice(waiting, given.jobs - len(running))}


def _key(run: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(run[key] for key in ("task", "method", "rate", "seed"))


def _run(wish: dict[str, Any], common: list[str]) -> dict[str, Any]:
    """One run, in this process."""
    changes = dict(METHODS[wish["method"]])
    changes["learning_rate"] *= wish["rate"]
    folder = Path(tempfile.mkdtemp(prefix="methods-"))
    keys = [f"--{pair}" for pair in [*_BATCH, *common]] + [f"--{key}={value}" for key, value in changes.items()]
    keys += [f"--seed={wish['seed']}", f"--output_dir={folder / 'run'}", "--report_to=none"]
    keys += ["--eval_strategy=steps", "--eval_steps=1000000", "--save_strategy=no", "--disable_tqdm=true"]
    start = time.perf_counter()
    run: dict[str, Any] = {**wish, "keys": changes}
    try:
        with (folder / "log").open("w") as log, redirect_stdout(log), redirect_stderr(log):
            train(str(RECIPE), keys)
    except (SVFError, RuntimeError) as error:  # the second where the device's memory is full
        run["failed"] = str(error)[:500]
    run["seconds"] = round(time.perf_counter() - start, 1)
    if "failed" not in run:
        found = read_run(folder / "run")
        run |= {
            "trained_values": found.summary.trained_values,
            "base": found.summary.base_accuracy,
            "test": found.summary.accuracy,
            "validation": found.evaluations[-1].values["eval_accuracy"],
            "phases": found.summary.seconds,
            "curves": {
                key: [round(line.values[key], 5) for line in found.updates if key in line.values] for key in CURVES
            },
        }
    shutil.rmtree(folder)
    return run


if __name__ == "__main__":
    main()
