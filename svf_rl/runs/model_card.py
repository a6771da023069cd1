"""The model card of an adapter, written from the run: what was trained, on what, how well it does, how to load it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from svf_rl.metrics.statistics import wilson
from svf_rl.runs.model_card_usage import how_to_evaluate, how_to_load, reward_names
from svf_rl.runs.provenance import (
    BUNDLED,
    base_location,
    base_name,
    is_svf,
    known_elsewhere,
    read_adapter_config,
    read_metrics,
    task_names,
    without_machine,
)
from svf_rl.svf.targets import TARGETS
from svf_rl.tasks import find_task

MARKER = "<!-- written by svf-rl from the run; remove this line to keep changes of your own -->"
"""The last line of every card: one without it was written by a person, and is not written over."""

_SETTINGS = (
    "objective", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm",
    "per_device_train_batch_size", "gradient_accumulation_steps", "num_generations", "temperature", "top_p",
    "advantage", "normalize_advantages", "advantage_clip", "loss_reduction", "beta", "kl_type", "kl_placement",
    "max_completion_length", "max_steps", "num_train_epochs", "dtype", "bf16", "use_vllm",
)  # fmt: skip


def write_card(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write `README.md` beside the adapter in `folder`. A run that is pushed to the Hub is loaded from there."""
    recipe = summary.get("recipe", {})
    location = recipe.get("hub_model_id") if recipe.get("push_to_hub") else None
    text = model_card(summary, read_adapter_config(folder), read_metrics(folder), location=location or ".")
    (folder / "README.md").write_text(text, encoding="utf-8")


def model_card(
    summary: Mapping[str, Any],
    adapter_config: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]] | None = None,
    *,
    location: str = ".",
    name: str | None = None,
) -> str:
    """
    The text of a `README.md`, its front matter included. It names no path of this machine.

    Args:
        summary (`dict`): `summary.json` of the run, as far as it is known: a checkpoint has no accuracies yet.
        adapter_config (`dict`): the content of `adapter_config.json`.
        metrics (`list[dict]`, *optional*): the lines of `metrics.jsonl`.
        location (`str`, *optional*, defaults to `"."`): where the card says that the adapter is: its name on the Hub.
        name (`str`, *optional*): the title; default: the end of the location, or of the run's folder.
    """
    recipe = without_machine(summary.get("recipe", {}))
    base = base_location(adapter_config, summary)
    if name is None:
        folder = summary.get("recipe", {}).get("output_dir") or "adapter"
        name = Path(folder if location == "." else location).name or "adapter"
    sections = [
        f"# {name}",
        _summary_line(summary, adapter_config, base),
        _accuracy(summary),
        "## Method\n\n" + _method(adapter_config),
        _data(summary, recipe),
        "## Load it\n\n" + how_to_load(recipe, adapter_config, base, location),
        how_to_evaluate(recipe, base, location),
        _training(summary, recipe, metrics or []),
        "## Limits\n\n" + _limits(summary, adapter_config),
        _versions(summary),
        MARKER,
    ]
    front = _front_matter(summary, adapter_config, base, name)
    return f"---\n{front}---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(summary: Mapping[str, Any], config: Mapping[str, Any], base: str | None, name: str) -> str:
    recipe = summary.get("recipe", {})
    results, accuracy = None, summary.get("accuracy")
    tasks = task_names(recipe)
    datasets = _hub_datasets(recipe)
    if accuracy is not None and tasks:
        label = ", ".join(tasks)
        results = [
            EvalResult(
                task_type="text-generation",
                dataset_type=datasets[0] if len(datasets) == 1 else label,
                dataset_name=label,
                metric_type="accuracy",
                metric_name=f"held-out accuracy, greedy, {summary.get('items')} items",
                metric_value=round(accuracy, 4),
            )
        ]
    hub_base = base_name(base) if known_elsewhere(base) and base_name(base) != BUNDLED else None
    method = "svf" if is_svf(config) else str(config.get("peft_type", "peft")).lower()
    data = ModelCardData(
        library_name="peft",
        base_model=hub_base,
        pipeline_tag="text-generation",
        tags=[*dict.fromkeys([method, "svf_rl", "reinforce", "trl"])],
        datasets=datasets or None,
        model_name=name if results else None,
        eval_results=results,
    )
    return data.to_yaml() + "\n"


def _hub_datasets(recipe: Mapping[str, Any]) -> list[str]:
    if recipe.get("dataset_name"):
        return [str(recipe["dataset_name"])]
    hubs = [find_task(name.partition(":")[0]).hub for name in task_names(recipe)]
    return list(dict.fromkeys(hub.name for hub in hubs if hub is not None))


def _summary_line(summary: Mapping[str, Any], config: Mapping[str, Any], base: str | None) -> str:
    recipe, values = summary.get("recipe", {}), summary.get("trained_values")
    kind = "singular value fine-tuning (SVF)" if is_svf(config) else f"{config.get('peft_type', 'PEFT')}"
    line = f"An adapter by {kind} of {_linked(base)}"
    tasks = task_names(recipe)
    if config.get("combination"):
        line += f": a weighted combination of {len(config['combination']['experts'])} experts"
    elif tasks:
        how = "next-token training" if recipe.get("objective") == "next_token" else "REINFORCE on verifiable rewards"
        line += f", trained on {_listed(tasks)} by {how}"
    return line + (f". It has {values:,} trained values." if values else ".")


def _linked(base: str | None) -> str:
    name = base_name(base)
    if name == BUNDLED:
        return "the small model that comes with the Python package svf_rl (`quickstart`)"
    return f"[{name}](https://huggingface.co/{name})" if known_elsewhere(base) else f"`{name}`"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _accuracy(summary: Mapping[str, Any]) -> str:
    if summary.get("accuracy") is None or not summary.get("items"):
        return ""
    items = int(summary["items"])
    lines = ["| held-out accuracy, greedy | value | 95 % interval (Wilson) | items |", "|---|---|---|---|"]
    for label, key in (("base model", "base_accuracy"), ("with this adapter", "accuracy")):
        if summary.get(key) is not None:
            low, high = wilson(round(summary[key] * items), items)
            lines.append(f"| {label} | {summary[key]:.3f} | {low:.3f} to {high:.3f} | {items} |")
    return "\n".join(lines)


def _method(config: Mapping[str, Any]) -> str:
    if not is_svf(config):
        rank = f" of rank {config['r']}, alpha {config.get('lora_alpha')}," if "r" in config else ""
        return f"{config.get('peft_type', 'PEFT')}{rank} on {_targets(config)}."
    m = "m = z"
    if config.get("parameterization") == "sigmoid":
        m = f"m = {config.get('max_multiplier', 2.0):g} · sigmoid(z)"
    if config.get("renormalize"):
        m += ", scaled so that the sum of the singular values stays"
    text = (
        "Each adapted weight `W = U diag(s) Vᵀ` becomes `W' = U diag(s·m) Vᵀ`; the vector `z`, one value a singular "
        f"value, is all that was trained ({m}). See [Transformer²](https://arxiv.org/abs/2501.06252), section 3.1. "
        f"Adapted: {_targets(config)}."
    )
    return text + (f"\n\n{_combination(config['combination'])}" if config.get("combination") else "")


def _targets(config: Mapping[str, Any]) -> str:
    targets = config.get("target_modules")
    if isinstance(targets, str):
        presets = {regex: name for name, regex in TARGETS.items()}
        return f"`{presets.get(targets, targets)}`"
    return _listed(sorted(targets or []))


def _combination(combination: Mapping[str, Any]) -> str:
    names = [Path(name).name for name in combination["experts"]]
    rows = combination["alpha"]
    formula = "1 + Σ α (m − 1)" if combination.get("form") == "deviation" else "Σ α m"
    text = f"`m = {formula}` over the experts {_listed(names)}, with α per `{combination.get('scope', 'global')}`"
    if len(rows) > 16:
        return f"{text}: {len(rows)} rows, in `adapter_config.json`."
    table = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    table += ["| " + " | ".join(f"{value:.4g}" for value in row) + " |" for row in rows]
    return f"{text}:\n\n" + "\n".join(table)


def _data(summary: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    tasks = task_names(recipe)
    if not tasks:
        return ""
    where = _hub_datasets(recipe)
    source = f" ({', '.join(f'[{name}](https://huggingface.co/datasets/{name})' for name in where)})" if where else ""
    if tasks[0].startswith(BUNDLED) and not where:
        source = " (made by svf_rl from a fixed seed)"
    text = f"Task {_listed(tasks)}{source}; right is what the reward {_listed(reward_names(recipe))} says."
    rows = summary.get("rows")
    if rows:
        text += " Rows: " + ", ".join(f"{split} {count:,}" for split, count in rows.items()) + "."
    return "## Data\n\n" + text


def _training(summary: Mapping[str, Any], recipe: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str:
    if not recipe:
        return ""
    sentences = [f"Seed {summary['seed']}"] if summary.get("seed") is not None else []
    if summary.get("updates") is not None:
        sentences.append(f"{summary['updates']} updates")
    if summary.get("best_checkpoint"):
        sentences.append(f"the weights of {summary['best_checkpoint']}, the best one on the validation rows")
    text = ", ".join(sentences) + "." if sentences else ""
    held_out = [(line.get("step"), line["eval_accuracy"]) for line in metrics if "eval_accuracy" in line]
    if held_out:
        text += " Accuracy on the validation rows: " + ", ".join(f"{a:.3f} (update {s})" for s, a in held_out[-8:])
        text += "."
    last = next((line for line in reversed(metrics) if "reward" in line), None)
    if last is not None:
        text += f" Last update: mean reward {last['reward']:.3f}"
        text += f", KL to the base {last['kl']:.4f} a token." if last.get("kl") is not None else "."
    rows = [f"| `{key}` | {recipe[key]} |" for key in _SETTINGS if recipe.get(key) is not None]
    table = "\n".join(["| setting | value |", "|---|---|", *rows]) if rows else ""
    return "## Training\n\n" + "\n\n".join(part for part in (text.strip(), table) if part)


def _limits(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    points = []
    if is_svf(config):
        points.append(
            "The adapter fits the weights that it was trained on and no others: loading it onto another base model, or "
            "another revision, is refused."
        )
    points.append(
        "It was trained for one kind of task. Reinforcement learning brings out what the base model can do already; "
        "other tasks may come out worse than with the base model."
    )
    if summary.get("accuracy") is not None:
        points.append(
            "The intervals say how far the figures depend on the choice of items, for this one seed; they say nothing "
            "about other seeds, prompts or wordings."
        )
    points.append("What the base model's licence asks for holds for the adapter's use too.")
    return "\n".join(f"- {point}" for point in points)


def _versions(summary: Mapping[str, Any]) -> str:
    packages = summary.get("packages")
    if not packages:
        return ""
    return "## Versions\n\n" + ", ".join(f"{name} {version}" for name, version in packages.items())
