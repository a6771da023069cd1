"""The dry run: every check of a recipe that needs no weights, and of the network at most the model's `config.json`."""

import importlib.util
import math
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from svf_rl.errors import SVFError
from svf_rl.rewards import Reward, load_reward
from svf_rl.runs.provenance import check_base
from svf_rl.settings.config import OF_PASSES, SVFReinforceConfig
from svf_rl.settings.dry_run_model import check_quantizer, find_adapted_matrices, find_tokenizer, positions_of
from svf_rl.settings.dry_run_training import check_training
from svf_rl.settings.episodes import check_objective, check_rewarded, check_template, load_episodes
from svf_rl.settings.recipe import DataArguments, Recipe
from svf_rl.settings.rows import check_columns, load_rows, untrainable
from svf_rl.tasks import Splits, find_task
from svf_rl.tasks.targets import target_column
from svf_rl.tasks.task import not_read

_PACKAGE_OF_REPORTER = {"azure_ml": "azureml", "dagshub": "mlflow", "flyte": "flytekit", "kubeflow": "transformers"}

# With more, a step takes minutes on a CPU: a recipe for a GPU that was started on the wrong machine.
_SMALL_ENOUGH_FOR_CPU = 1_000_000_000


@dataclass(frozen=True)
class DryRun:
    """What a run of the recipe would do. `str()` of it is what `--dry-run` prints. `None`: cannot be known here."""

    matrices: int | None
    trainable_values: int | None
    rows: dict[str, int] | None
    rewards: list[tuple[str, float]]
    prompts_per_update: float
    sequences_per_update: int
    updates: int | None
    lines: dict[str, str]  # what is printed, by its name
    notes: list[str]
    splits: Splits | None  # the rows themselves, where they are local, and were checked with their prompts
    refusal: str = ""  # why it cannot be made on this machine

    def __str__(self) -> str:
        lines = [f"{name + ':':16}{text}" for name, text in self.lines.items()]
        notes = [*self.notes, *([f"here it would end at once: {self.refusal}"] if self.refusal else ())]
        return "\n".join([*lines, *(f"note: {note}" for note in notes)])


def check_recipe(recipe: Recipe) -> DryRun:
    """Check a recipe and describe its run; loads no weights, creates no folder, contacts no vLLM server.

    Local rows (files, the quickstart's) are really loaded.

    Raises:
        SVFError: a reward or a column is missing, the targets match nothing, or the rows do not fill one batch.
    """
    notes = list(recipe.warnings)
    if recipe.training.objective == "evolution_strategies" and (ignored := sorted(OF_PASSES & recipe.raw.keys())):
        notes.append(f"{', '.join(ignored)}: not read for objective evolution_strategies")
    given = [key for key, value in recipe.raw.items() if value is not None]
    if ignored := not_read(find_task(recipe.data.task), given):
        notes.append(f"{', '.join(ignored)}: not read for task {recipe.data.task}")
    check_reporters(recipe.training.report_to or ())
    if recipe.training.push_to_hub:
        check_base(recipe.model.model_name_or_path)
    rewards, episodes = load_rewards(recipe.data), load_episodes(recipe.data)
    check_objective(recipe.training.objective, episodes)
    check_rewarded(rewards, episodes)
    adapted = find_adapted_matrices(recipe, notes)
    config = None if adapted is None else adapted.config
    check_quantizer(config, recipe.model)
    tokenizer = None if config is None else find_tokenizer(recipe.model, notes)
    if episodes and tokenizer is not None:
        check_template(tokenizer, episodes)
    splits = _check_data(recipe, rewards, tokenizer, positions_of(config), notes, episodes.tools)
    rows = None if splits is None else {split: len(own) for split, own in splits.items() if own is not None}
    programs = any(reward.__name__ in ("unit_tests", "verified") for reward in rewards) or recipe.data.runs_programs
    if programs and shutil.which("bwrap") is None:
        notes.append("bubblewrap is not installed on this machine: model-written code cannot be run in a sandbox")
    training, data, adapter = recipe.training, recipe.data, recipe.adapter
    size, steps = training.per_device_train_batch_size, training.gradient_accumulation_steps
    processes = training.world_size
    sequences = size * processes * steps
    prompts = sequences / training.num_generations
    updates = count_updates(training, None if rows is None else rows["train"])
    check_training(training, updates)
    matrices, values = (None, None) if adapted is None else (len(adapted.matrices), adapted.trained_values)
    weights = [(reward.__name__, reward.weight) for reward in rewards]
    start = f", from {adapter.adapter_path}" if adapter.adapter_path else ""
    skill = f" {data.skill}" if data.task == "quickstart" else ""
    sizes = "not checked" if rows is None else ", ".join(f"{split} {n}" for split, n in rows.items())
    lines = {
        "model": f"{recipe.model.model_name_or_path} ({recipe.model.dtype})",
        "adapter": adapter.kind.describe(adapter) + start,
        "trained values": "not checked" if matrices is None else f"{values:,} in {matrices} matrices",
        "task": f"{data.task}{skill} (rows: {sizes})",
        "rewards": ", ".join(f"{name} × {weight:g}" for name, weight in weights) or "the environment's",
        **({"episodes": episodes.describe()} if episodes else {}),
        "an update": f"{prompts:g} prompts, {sequences} sequences = {size} × {processes} (processes) × {steps} "
        "(accumulated)",
        "updates": "not checked" if updates is None else str(updates),
        **_describe_objective(training),
        **({"warm-up": _describe_warm_up(recipe)} if recipe.runs.warm_up_steps else {}),
        "output": training.output_dir,
    }
    refusal = "" if adapted is None else _needs_gpu(recipe, adapted.parameters or 0)
    checked = splits if tokenizer else None
    return DryRun(matrices, values, rows, weights, prompts, sequences, updates, lines, notes, checked, refusal)


def _needs_gpu(recipe: Recipe, parameters: int) -> str:
    if not recipe.lacks_gpu or parameters <= _SMALL_ENOUGH_FOR_CPU:
        return ""
    return (
        f"{recipe.model.model_name_or_path} has {parameters / 1e9:.1f} billion parameters and this machine has no GPU: "
        "train it where there is one, or give --device cpu if you mean it"
    )


def _describe_objective(training: SVFReinforceConfig) -> dict[str, str]:
    signal, draws, correction = "next-token", "only of held-out answers", ""
    if training.objective != "next_token":
        draws = f"{training.num_generations} per prompt, temperature {training.temperature:g}"
    if training.objective == "policy_gradient":
        signal = f"advantage {training.advantage}"
        if training.use_vllm:
            corrected = training.vllm_importance_sampling_correction
            correction = f", mismatch correction {training.vllm_importance_sampling_mode if corrected else 'off'}"
    backend = training.generation_backend
    generators = {"colocated": "vLLM", "server": f"vLLM at {', '.join(training.server_urls)}"}
    kl = f"KL {training.beta:g} × {training.kl_type} in the {training.kl_placement}" if training.beta else "no KL"
    if training.beta and training.kl_reference == "start":
        kl += ", from the start"
    if training.entropy_coef:
        kl += f", entropy bonus {training.entropy_coef:g}"
    goal = f"{signal}, log-likelihood {training.loss_reduction}, {kl}"
    if training.objective == "evolution_strategies":
        goal = (
            f"evolution strategies, population {training.num_generations}, sigma {training.evolution_sigma:g}, fitness "
            f"{training.evolution_fitness}"
        )
    return {
        "objective": f"{goal}, learning rate {training.learning_rate:g}, clip {training.max_grad_norm:g}",
        "generation": f"{generators.get(backend, backend)}, {draws}, at most {training.max_completion_length} tokens"
        f"{correction}",
    }


def _describe_warm_up(recipe: Recipe) -> str:
    training = recipe.training
    answers = training.per_device_train_batch_size * training.world_size * training.gradient_accumulation_steps
    return f"{recipe.runs.warm_up_steps} updates of next-token training before, of {answers} right answers each"


def load_rewards(data: DataArguments) -> list[Reward]:
    """The recipe's rewards, or the task's; with an environment there may be none. Raises `SVFError` for an unknown one,
    or if there is none."""
    if data.environment is not None:
        return [load_reward(spec) for spec in data.rewards or ()]
    specs = find_task(data.task).rewards(data) if data.rewards is None else data.rewards
    if not specs:
        raise SVFError("rewards is empty: name at least one, such as exact_match")
    return [load_reward(spec) for spec in specs]


def check_reporters(names: Collection[str]) -> None:
    """Raises `SVFError` for a name in `report_to` that nothing has, or whose package is not installed."""
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise SVFError(f"report_to: {name!r} is not known: give none, or one of {known}")
        package = _PACKAGE_OF_REPORTER.get(name, name)
        if importlib.util.find_spec(package) is None:
            extra = f" (svf_rl's extra {name})" if name in ("wandb", "trackio") else ""
            raise SVFError(f"report_to: {name} needs a package that is not installed: pip install {package}{extra}")


def count_updates(training: SVFReinforceConfig, train_rows: int | None) -> int | None:
    """How many optimizer steps a run has; `None` where this depends on an unknown number of rows. Raises `SVFError`
    where the rows do not fill one generation batch, so that there would be no step."""
    steps: int = training.max_steps
    if train_rows is None:
        return steps if steps > 0 else None
    prompts = training.generation_batch_size // training.num_generations
    # an incomplete generation batch at the end of an epoch is dropped
    batches = train_rows // prompts
    if batches == 0:
        raise SVFError(
            f"{train_rows} training rows do not fill one generation batch of {prompts} prompts: add rows, or lower "
            "per_device_train_batch_size or steps_per_generation (by default gradient_accumulation_steps)"
        )
    if steps > 0:
        return steps
    micro_steps = batches * training.steps_per_generation * training.num_iterations
    an_epoch = math.ceil(micro_steps / training.gradient_accumulation_steps)
    updates: int = math.ceil(an_epoch * training.num_train_epochs)
    return updates


def _check_data(
    recipe: Recipe,
    rewards: list[Reward],
    tokenizer: PreTrainedTokenizerBase | None,
    positions: int | None,
    notes: list[str],
    tools: Sequence[Callable[..., Any]] | None,
) -> Splits | None:
    data, objective = recipe.data, recipe.training.objective
    task = find_task(data.task)
    if not task.trainable:
        raise untrainable(data.task, "training")
    task.stop_strings(data)
    if task.is_local(data):
        splits, left_out = load_rows(data, recipe.training, rewards, tokenizer, positions, tools)
        notes += left_out
        return splits
    if task.columns is not None:
        check_columns(rewards if data.rollout_func is None else (), task.columns)
        if objective == "next_token":
            target_column(task.columns, data.task)
        notes.append("the rows come from the Hub: their number was not checked, their columns are those of the task")
    else:
        notes.append(f"dataset {data.dataset_name} comes from the Hub: its rows and columns were not checked")
    return None
