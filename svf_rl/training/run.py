"""One run, from a checked recipe to its `summary.json`."""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed as set_seed_of_process
from transformers import ProgressCallback, Trainer, set_seed

from svf_rl.models.loading import load_adapted, load_tokenizer
from svf_rl.runs.provenance import remove_secrets
from svf_rl.runs.summary import RunSummary, read_package_versions
from svf_rl.settings.dry_run import DryRun, load_rewards
from svf_rl.settings.dry_run_model import find_positions
from svf_rl.settings.episodes import load_episodes
from svf_rl.settings.recipe import Recipe
from svf_rl.settings.rows import load_rows
from svf_rl.storage.environment import is_first_process
from svf_rl.storage.files import write_json
from svf_rl.tasks import find_task
from svf_rl.training.checkpoints import current_run
from svf_rl.training.earlier_run import remove_run
from svf_rl.training.evolution import EvolutionTrainer
from svf_rl.training.metrics_recorder import ProgressLine
from svf_rl.training.next_token import NextTokenTrainer
from svf_rl.training.resume import rows_digest
from svf_rl.training.run_context import RunContext, leave_process_group
from svf_rl.training.shared_base import Member
from svf_rl.training.trainer import SVFReinforceTrainer
from svf_rl.training.warm_up import WarmUp


def train_run(
    recipe: Recipe, output: Path, context: RunContext, report: DryRun, member: Member | None, warm_up: WarmUp | None
) -> RunSummary:
    """
    Train, from the start or from `context.checkpoint`, until `summary.json` is written.

    Args:
        recipe ([`Recipe`]), report ([`DryRun`]): The recipe, and what its dry run has found.
        output (`Path`): The folder of the run, which the caller holds.
        context ([`RunContext`]): What the trainer hands on and is handed.
        member ([`Member`], *optional*): Where it is one of several runs in this process.
        warm_up ([`WarmUp`], *optional*): The warm-up that the run starts from, or the one that it is.
    """
    is_warm_up = warm_up is not None and warm_up.recipe is recipe
    generator: Any
    set_seed(recipe.training.seed)  # before the adapter: a random start draws from it
    phases = context.phases
    with phases("load"):
        task = find_task(recipe.data.task)
        rewards, episodes = load_rewards(recipe.data), load_episodes(recipe.data)
        recipe.training.reward_weights = [reward.weight for reward in rewards] or None
        if rewards and rewards[0].full is not None and "correct_threshold" not in recipe.raw:
            recipe.training.correct_threshold = recipe.raw["correct_threshold"] = rewards[0].full
        tokenizer = load_tokenizer(recipe.model)
        data = report.splits
        if data is None:  # of the Hub, or for a model of the Hub: not checked before
            positions = find_positions(recipe.model)
            data, left_out = load_rows(recipe.data, recipe.training, rewards, tokenizer, positions, episodes.tools)
            if is_first_process():
                print("".join(f"note: {line}\n" for line in left_out), end="", flush=True)
    with phases("decompose"):
        if member is not None:
            model, generator = member.join(context.stop)
        elif warm_up is not None and not is_warm_up:
            model, generator = warm_up.join(recipe)
        else:
            model, generator = load_adapted(recipe.model, recipe.adapter), None
    splits = {split: rows for split, rows in data.items() if rows is not None}
    context.rows = {split: rows_digest(rows) for split, rows in splits.items()}
    context.summary = RunSummary(
        recipe=remove_secrets({key: v for key, v in recipe.raw.items() if key != "resume_from_checkpoint"}),
        seed=recipe.training.seed,
        trained_values=sum(p.numel() for p in model.parameters() if p.requires_grad),
        rows={split: len(rows) for split, rows in splits.items()},
        packages=read_package_versions(),
        git_commit=_git_commit(),
        warnings=recipe.warnings,
        warm_up=context.warm_up,
    )
    with phases("engine"):
        trainers = {"next_token": NextTokenTrainer, "evolution_strategies": EvolutionTrainer}
        trainer = trainers.get(recipe.training.objective, SVFReinforceTrainer)(
            model,
            list(rewards),
            recipe.training,
            data["train"],
            data["validation"],
            processing_class=tokenizer,
            generator=generator,
            stop=task.stop_strings(recipe.data),
            context=context,
            tools=episodes.tools,
            rollout_func=episodes.rollout_func,
            environment_factory=episodes.environment_factory,
        )
        if not recipe.training.disable_tqdm:
            trainer.remove_callback(ProgressCallback)
            if member is None or member.is_first:
                trainer.add_callback(ProgressLine())
    test = data["test"] if data["test"] is not None else data["validation"]
    main = trainer.is_world_process_zero()
    label = "warm-up: " if is_warm_up else "" if member is None else f"{member.name}: "
    if main and is_warm_up and recipe.training.overwrite_output_dir:
        remove_run(output.parent)  # or --resume would resume it, were this one cut off now
    trainer.checkpoints.begin()
    if main:
        (output / "summary.json").unlink(missing_ok=True)  # a run that resumes has not ended yet
    if context.checkpoint is None:
        with phases("base_evaluation"):
            if warm_up is not None and warm_up.summary is not None:  # of the untouched model
                assert warm_up.summary.base_accuracy is not None  # it has ended
                context.base = {"base_accuracy": warm_up.summary.base_accuracy}
            else:
                context.base = trainer.evaluate(test, metric_key_prefix="base")
            if recipe.training.eval_strategy != "no":  # step 0 of the curve; no checkpoint is chosen by it
                recipe.training.eval_on_start = False
                if data["test"] is None and "base_items" in context.base:  # of the same rows
                    Trainer.log(trainer, {f"eval_{k.removeprefix('base_')}": v for k, v in context.base.items()})
                else:
                    trainer.held_out.evaluate(data["validation"])
    elif main:
        print(f"{label}resuming after step {context.checkpoint.manifest.step}", flush=True)
    if context.checkpoint is None and context.warm_up:  # whether its model and engine were built here or are taken over
        set_seed_of_process(recipe.training.seed, device_specific=True)
    with phases("train"):
        trainer.train()
        trainer.save_model(str(output))
        trainer.accelerator.wait_for_everyone()  # the main process writes what all read back
    with phases("evaluation"):
        final = trainer.held_out.evaluate_saved(str(output), test)
    best = trainer.state.best_model_checkpoint
    assert context.base is not None  # measured here, or read from the checkpoint
    context.summary = summary = replace(
        context.summary,
        run=current_run(output),
        base_accuracy=context.base["base_accuracy"],
        accuracy=final["test_accuracy"],
        items=int(final["test_items"]),
        updates=trainer.state.global_step,
        best_checkpoint=Path(best).name if best else None,
        seconds=phases.seconds,
        warm_up=context.warm_up,
    )
    if main:
        trainer.create_model_card()
        # last: a run without it is resumed with what is missing
        write_json(output / "summary.json", summary.to_dict())
        print(
            f"{label}{summary.measured_on} accuracy: {summary.base_accuracy:.3f} before, {summary.accuracy:.3f} after "
            f"({summary.items} items, greedy; saved adapter loaded again from {output})"
        )
    if recipe.training.push_to_hub:
        trainer.push_to_hub(commit_message="Accuracy and model card")
    if warm_up is not None and is_warm_up:
        warm_up.leave(trainer)
    else:
        leave_process_group()
    return summary


def _git_commit() -> str | None:
    """Of the checkout that this package is run from; `None` where it is installed, be it within another repository."""
    checkout = Path(__file__).resolve().parents[2]
    git = ["git", "-C", str(checkout), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        folder, commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit if Path(folder).resolve() == checkout else None
