"""Train an adapter from a recipe.

    accelerate launch [--config_file CONFIG] svf_rl/train.py RECIPE.yaml [--key value ...] [--resume] [--dry-run]

`svf-rl train RECIPE.yaml ...` is the same in one process. At SIGTERM, SIGUSR1 or Ctrl-C the run ends after the step
under way, with a checkpoint and exit status 75; `--resume` resumes from there.
"""

import argparse
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svf_rl.errors import Stopped, SVFError, one_line_errors
from svf_rl.storage.bundled import check_recipe_file
from svf_rl.storage.disk_errors import full_disk
from svf_rl.storage.environment import check_environment, is_first_process
from svf_rl.storage.folders import check_output
from svf_rl.storage.locks import hold_folder

if TYPE_CHECKING:  # it would bring numpy, before what must be set is set
    from svf_rl.runs.summary import RunSummary
    from svf_rl.training.shared_base import Member
    from svf_rl.training.warm_up import WarmUp


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 1, after one line on standard error, for bad input."""
    parser = argparse.ArgumentParser(
        "svf_rl/train.py", allow_abbrev=False, description="Train an adapter from a recipe.",
        epilog="Every key of the recipe can be given as --key value.",
    )  # fmt: skip
    fill(parser)
    known, overrides = parser.parse_known_args(arguments)
    with one_line_errors(known.debug) as outcome:
        check_environment()
        check_recipe_file(known.recipe)  # before what takes seconds
        if known.resume:
            if any(text.startswith(("--resume_from_checkpoint", "--resume-from-checkpoint")) for text in overrides):
                raise SVFError("--resume is --resume_from_checkpoint auto: give one of them")
            overrides += ["--resume_from_checkpoint", "auto"]
        run(known.recipe, overrides, dry_run=known.dry_run)
    return outcome.status


def fill(parser: argparse.ArgumentParser) -> None:
    """Add the flags; what is left are keys of the recipe."""
    parser.add_argument("recipe", help="a YAML file, or a name that svf-rl recipes lists")
    parser.add_argument("--dry-run", action="store_true", help="check the recipe without weights, and stop")
    parser.add_argument("--resume", action="store_true", help="resume from the last sound checkpoint, if there is one")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def run(path: str, overrides: Sequence[str] = (), dry_run: bool = False) -> "RunSummary | None":
    """Check the recipe, then train; returns what is written to `summary.json`, or `None` after a dry run or several
    runs."""
    quiet_libraries()
    from svf_rl.settings.recipe import load_recipe, load_runs
    from svf_rl.settings.warm_up import load_warm_up

    recipe = load_recipe(path, overrides)
    runs = load_runs(recipe, overrides)
    if runs:
        _run_several(recipe, runs, dry_run)
        return None
    warmed = load_warm_up(recipe, overrides)
    report = _check(recipe, dry_run)
    warm_up = None if warmed is None else _check_warm_up(warmed, dry_run)
    if is_first_process():
        print(report, flush=True)
    if dry_run:
        for each in (recipe, warmed) if warmed else (recipe,):
            _note_checkpoint(each)
        return None
    return _run_checked(recipe, report, warm_up=warm_up)


def _check(recipe: Any, dry_run: bool) -> Any:
    """The report of the dry run."""
    from svf_rl.generation.vllm.tensor_parallel import check_processes
    from svf_rl.settings.dry_run import check_recipe
    from svf_rl.training.checkpoints import check_ours

    training = recipe.training
    if not dry_run and training.use_vllm and training.vllm_mode == "colocate":
        check_processes(training.vllm_tensor_parallel_size, training.world_size)
    check_output(training.output_dir)
    report = check_recipe(recipe)
    adapters = (recipe.adapter.adapter_path, *(recipe.adapter.experts or ()))
    check_ours(Path(training.output_dir), (recipe.model.location, *adapters))
    return report


def _check_warm_up(recipe: Any, dry_run: bool) -> "WarmUp":
    from svf_rl.training.warm_up import WarmUp

    try:
        return WarmUp(recipe, _check(recipe, dry_run))
    except SVFError as error:
        raise SVFError(f"warm_up_steps: {error}") from error


def _note_checkpoint(recipe: Any) -> None:
    from svf_rl.training.resume import find_checkpoint

    training = recipe.training
    try:
        find_checkpoint(training.resume_from_checkpoint, Path(training.output_dir), training.overwrite_output_dir)
    except SVFError as error:
        print(f"note: {error}")


def _run_checked(
    recipe: Any, report: Any, member: "Member | None" = None, warm_up: "WarmUp | None" = None
) -> "RunSummary":
    """A run by itself, a `member` of several, or one of two: a `warm_up`, whose recipe this is, or what it is for."""
    from svf_rl.training.resume import check_same_run, ended_run, find_checkpoint
    from svf_rl.training.run import train_run
    from svf_rl.training.run_context import RunContext

    if report.refusal:
        raise SVFError(report.refusal)
    training, output = recipe.training, Path(recipe.training.output_dir)
    # before anything is filled in
    settings = asdict(recipe.model) | asdict(recipe.adapter) | asdict(recipe.data) | training.to_dict()
    settings["warm_up_steps"] = recipe.runs.warm_up_steps
    context = RunContext(settings=settings)
    with context.stop.listening(), _no_half_written(output), full_disk(output):
        # before anything is loaded: a recipe that the run cannot resume with is refused, and an ended run is left alone
        context.checkpoint = find_checkpoint(training.resume_from_checkpoint, output, training.overwrite_output_dir)
        if context.checkpoint is not None:
            check_same_run(context.checkpoint, settings, training.world_size)
        summary = ended_run(output, recipe) if training.resume_from_checkpoint in ("auto", True) else None
        if summary is not None:
            if is_first_process():
                what = "run" if warm_up is None or warm_up.recipe is not recipe else "warm-up"
                print(f"the {what} in {output} has ended after {summary.updates} steps: nothing is left to do")
            return summary
        with hold_folder(output, seconds=30.0) if is_first_process() else nullcontext():
            if warm_up is not None and warm_up.recipe is not recipe:
                if context.checkpoint is not None:  # which has all of it
                    warm_up = None
                else:
                    warm_up.summary = _run_checked(warm_up.recipe, warm_up.report, warm_up=warm_up)
                    context.warm_up = warm_up.outcome
            return train_run(recipe, output, context, report, member, warm_up)


def _run_several(recipe: Any, runs: dict[str, Any], dry_run: bool) -> None:
    """All `runs` of a recipe, in one process. One that fails leaves the others alone."""
    from svf_rl.training.run_context import StopRequest, stopped
    from svf_rl.training.shared_base import Member, SharedBase

    output = recipe.training.output_dir
    reports = {}
    for name, own in runs.items():
        try:
            reports[name] = _check(own, dry_run)
        except SVFError as error:
            raise SVFError(f"run {name}: {error}") from error
    print(f"{next(iter(reports.values()))}\n{'runs:':16}{', '.join(runs)} (each in a folder of {output})", flush=True)
    if dry_run:
        for own in runs.values():
            _note_checkpoint(own)
        return
    stop = StopRequest()
    base = SharedBase(recipe, list(runs), stop)
    with stop.listening(), stop.notes():
        ends = base.run(
            {name: partial(_run_checked, own, reports[name], Member(name, base)) for name, own in runs.items()}
        )
    failed = {name: failure for name, end in ends.items() if (failure := end.exception()) is not None}
    for failure in failed.values():
        if not isinstance(failure, SVFError | Stopped):
            raise failure
    if stop.requested is not None:
        raise stopped(f"stopped by {stop.requested}: --resume resumes the runs in {output}")
    if failed:
        texts = "; ".join(f"{name}: {failure}" for name, failure in failed.items())
        raise SVFError(
            f"{len(failed)} of {len(runs)} runs in {output} have failed (--resume tries them again): {texts}"
        )
    summaries = [end.result() for end in ends.values()]
    before, after = ([getattr(summary, key) for summary in summaries] for key in ("base_accuracy", "accuracy"))
    print(
        f"{len(runs)} runs: accuracy {sum(before) / len(runs):.3f} before, {sum(after) / len(runs):.3f} after (mean; "
        f"{min(after):.3f} to {max(after):.3f})"
    )


@contextmanager
def _no_half_written(output: Path) -> Iterator[None]:
    """A run that ends badly before its first step leaves no output folder behind, if there was none before. One that
    was stopped after it had begun keeps it: it is to be resumed."""
    from svf_rl.runs.run_folder import read_metrics
    from svf_rl.settings.warm_up import WARM_UP
    from svf_rl.training.checkpoints import current_run

    existed = output.exists()
    try:
        yield
    except BaseException as error:  # an interrupt or a bug leaves no more behind than bad input does
        stopped = isinstance(error, Stopped) and current_run(output) is not None
        begun = list(output.glob("checkpoint-*")) or any(line.step for line in read_metrics(output))
        warmed = current_run(output / WARM_UP) is not None  # what a warm-up that fails leaves, it has decided itself
        if not (existed or stopped or begun or warmed):
            shutil.rmtree(output, ignore_errors=True)
        raise


def quiet_libraries() -> None:
    """Defaults that a user's own environment overrides: the run's lines, not each library's start-up log. Before torch
    is imported."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of vLLM too, on NUMA nodes
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])  # vLLM looks for Triton before it has set it
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")


if __name__ == "__main__":
    sys.exit(main())
