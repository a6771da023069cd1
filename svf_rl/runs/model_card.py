"""The model card of an adapter, written from the run: what was trained, on what, how well it does, how to load it."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from svf_rl.markdown import render
from svf_rl.models.kinds import kind_of
from svf_rl.quickstart import MODELS, make_rows
from svf_rl.runs.provenance import BUNDLED, base_name, find_base, is_known_elsewhere, list_tasks, remove_paths
from svf_rl.runs.run_folder import Line, read_adapter_config, read_metrics
from svf_rl.runs.summary import RunSummary
from svf_rl.storage.files import write_file
from svf_rl.tasks import TaskOptions, find_task

MARKER = "<!-- written by svf-rl from the run; remove this line to keep changes of your own -->"
"""The last line of every card: one without it was written by a person, and is not written over."""

_SETTINGS = (
    "objective", "warm_up_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm",
    "per_device_train_batch_size", "gradient_accumulation_steps", "num_generations", "temperature", "top_p",
    "advantage", "normalize_advantages", "advantage_clip", "loss_reduction", "beta", "kl_type", "kl_placement",
    "kl_reference", "max_completion_length", "max_steps", "num_train_epochs", "dtype", "bf16", "use_vllm",
)  # fmt: skip


def write_model_card(folder: Path, summary: RunSummary) -> None:
    """Write `README.md` beside the adapter in `folder`. A run that is pushed to the Hub is loaded from there."""
    location = summary.recipe.get("hub_model_id") if summary.recipe.get("push_to_hub") else None
    text = render_model_card(summary, read_adapter_config(folder), read_metrics(folder), location=location or ".")
    write_file(folder / "README.md", text)


def render_model_card(
    summary: RunSummary,
    adapter_config: Mapping[str, Any],
    metrics: Sequence[Line] = (),
    *,
    location: str = ".",
) -> str:
    """
    The text of a `README.md`, its front matter included. It names no path of this machine.

    Args:
        summary ([`RunSummary`]): of the run, as far as it is known: a checkpoint has no accuracies yet.
        adapter_config (`dict`): the content of `adapter_config.json`.
        metrics (`Sequence[Line]`, *optional*): what the run logged.
        location (`str`, *optional*, defaults to `"."`): where the card says that the adapter is: its name on the Hub,
            whose end is the title; by default that is the end of the run's folder.
    """
    recipe = remove_paths(summary.recipe)
    own_episodes = bool(recipe.get("rollout_func"))  # which svf-rl eval cannot make
    base = find_base(adapter_config, summary)
    folder = summary.recipe.get("output_dir") or "adapter"
    name = Path(folder if location == "." else location).name or "adapter"
    short_base, tasks = base_name(base), list_tasks(recipe)
    hub_base = short_base if is_known_elsewhere(base) and short_base not in MODELS else None
    datasets = _hub_datasets(recipe)
    source = ", ".join(f"[{dataset}](https://huggingface.co/datasets/{dataset})" for dataset in datasets)
    if not datasets and tasks and tasks[0].startswith(BUNDLED):
        source = "made by svf_rl from a fixed seed"
    revision = recipe.get("model_revision")
    return render(
        "runs/model_card.md.jinja",
        front_matter=_front_matter(summary, adapter_config, hub_base, name, tasks, datasets),
        name=name,
        kind=kind_of(adapter_config),
        base=short_base,
        base_link=_linked(base),
        summary=summary,
        config=adapter_config,
        recipe=recipe,
        bundled=short_base in MODELS,
        portable=is_known_elsewhere(base),
        tasks=tasks,
        source=f" ({source})" if source else "",
        rewards=_reward_names(recipe) if tasks else [],
        location=location,
        revision=f', revision="{revision}"' if revision else "",
        dtype=recipe.get("dtype", "auto"),
        question=_question(recipe),
        quoted=lambda text: json.dumps(text, ensure_ascii=False),
        command=_evaluation_command(recipe, short_base, location, tasks) if tasks and not own_episodes else "",
        progress=_progress(summary, metrics),
        settings={key: recipe[key] for key in _SETTINGS if recipe.get(key) is not None},
        marker=MARKER,
    )


def _front_matter(
    summary: RunSummary,
    config: Mapping[str, Any],
    base: str | None,
    name: str,
    tasks: Sequence[str],
    datasets: list[str],
) -> str:
    results = None
    objective = str(summary.recipe.get("objective", "policy_gradient")).replace("policy_gradient", "reinforce")
    if summary.accuracy is not None and tasks:
        label = ", ".join(tasks)
        results = [
            EvalResult(
                task_type="text-generation",
                dataset_type=datasets[0] if len(datasets) == 1 else label,
                dataset_name=label,
                metric_type="accuracy",
                metric_name=f"{summary.measured_on} accuracy, greedy, {summary.items} items",
                metric_value=round(summary.accuracy, 4),
            )
        ]
    return ModelCardData(
        library_name="peft",
        base_model=base,
        pipeline_tag="text-generation",
        tags=[*dict.fromkeys([kind_of(config).name, "svf_rl", objective.replace("_", "-"), "trl"])],
        datasets=datasets or None,
        model_name=name if results else None,
        eval_results=results,
    ).to_yaml()


def _hub_datasets(recipe: Mapping[str, Any]) -> list[str]:
    if recipe.get("dataset_name"):
        return [str(recipe["dataset_name"])]
    hubs = [find_task(name.partition(":")[0]).hub for name in list_tasks(recipe)]
    return list(dict.fromkeys(hub.name for hub in hubs if hub is not None))


def _linked(base: str | None) -> str:
    name = base_name(base)
    if name in MODELS:
        return f"a small model that comes with the Python package svf_rl (`{name}`)"
    return f"[{name}](https://huggingface.co/{name})" if is_known_elsewhere(base) else f"`{name}`"


def _progress(summary: RunSummary, metrics: Sequence[Line]) -> str:
    parts = [f"Seed {summary.seed}"] if summary.seed is not None else []
    if (warmed := summary.recipe.get("warm_up_steps")) and summary.recipe.get("objective") != "next_token":
        parts.append(f"{warmed} steps of next-token training as a warm-up")
    if summary.updates is not None:
        parts.append(f"{summary.updates} steps")
    if summary.best_checkpoint:
        parts.append(f"the weights of {summary.best_checkpoint}, the best one on the validation rows")
    sentences = [", ".join(parts) + "."] if parts else []
    # a value is null where no completion could be scored
    accuracies = [(line.values.get("eval_accuracy"), line.step) for line in metrics]
    validated = [f"{accuracy:.3f} (step {step})" for accuracy, step in accuracies if accuracy is not None]
    if validated:
        sentences.append(f"Validation accuracy: {', '.join(validated[-8:])}.")
    rewarded = [line.values for line in metrics if "reward" in line.values]
    if rewarded:
        reward, kl = rewarded[-1]["reward"], rewarded[-1].get("kl")
        origin = "start" if summary.recipe.get("kl_reference") == "start" else "base"
        mean = "no completion could be scored" if reward is None else f"mean reward {reward:.3f}"
        sentences.append(f"Last step: {mean}{'' if kl is None else f', KL to the {origin} {kl:.4f} a token'}.")
    return " ".join(sentences)


def _question(recipe: Mapping[str, Any]) -> str:
    if recipe.get("task") == BUNDLED and recipe.get("skill", "math") in ("math", "choice", "code"):
        return str(make_rows(recipe.get("skill", "math"), "test", 1)[0]["prompt"])
    return "Your question"


def _evaluation_command(recipe: Mapping[str, Any], base: str, location: str, tasks: Sequence[str]) -> str:
    """The command that grades the adapter as its training did."""
    words = ["svf-rl", "eval", base, "--adapter", location, "--tasks", ",".join(tasks)]
    for key in ("dataset_name", "dataset_config", "prompt_column", "answer_column", "system_prompt", "profile"):
        if recipe.get(key) is not None:
            words += ["--" + key.replace("_", "-"), str(recipe[key])]
    if tasks == ["columns"] and not recipe.get("dataset_name"):
        words += ["--data-path", "YOUR_FILE.jsonl"]
    if recipe.get("task") == "reasoning_gym":
        # test rows are of the curriculum's last level
        last = {key: levels[-1] for key, levels in (recipe.get("curriculum") or {}).items()}
        if config := {**(recipe.get("config") or {}), **last}:
            words += ["--config", json.dumps(config)]
    if recipe.get("shots"):
        words += ["--shots-in-prompt", str(recipe["shots"])]
    if recipe.get("chat_template_kwargs"):
        words += ["--chat-template-kwargs", json.dumps(recipe["chat_template_kwargs"])]
    if recipe.get("rewards"):
        words += ["--reward", _reward_names(recipe)[0]]
    if recipe.get("tools") or recipe.get("environment"):
        tools, worlds = recipe.get("tools") or [], recipe.get("environment")
        words += ["--tools", ",".join([tools] if isinstance(tools, str) else tools)] if tools else []
        words += ["--environment", worlds if isinstance(worlds, str) else json.dumps(worlds)] if worlds else []
        if recipe.get("max_tool_calling_iterations") is not None:
            words += ["--max-tool-calling-iterations", str(recipe["max_tool_calling_iterations"])]
    if recipe.get("max_completion_length") is not None:
        words += ["--max-tokens", str(recipe["max_completion_length"])]
    return shlex.join(words)


def _reward_names(recipe: Mapping[str, Any]) -> list[str]:
    """The rewards that the recipe names, or those of its task."""
    known = {f.name for f in fields(TaskOptions)}
    options = TaskOptions(**{key: value for key, value in recipe.items() if key in known})
    specs = recipe.get("rewards") or find_task(str(recipe["task"])).rewards(options)
    specs = [specs] if isinstance(specs, str | Mapping) else specs
    return [spec if isinstance(spec, str) else str(spec.get("name")) for spec in specs]
