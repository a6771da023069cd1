"""An evaluation from its arguments to its results."""

import itertools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from svf_rl import __version__
from svf_rl.evaluation.adapters import BASE, Adapter, find_adapters
from svf_rl.evaluation.answers import answer_items, split_pending
from svf_rl.evaluation.arguments import EvaluationArguments
from svf_rl.evaluation.base_model import BaseModel, find_base_model
from svf_rl.evaluation.folder import Settings, choose_folder
from svf_rl.evaluation.items import TaskItems, check_lengths, load_items
from svf_rl.evaluation.records import Answers, read_records
from svf_rl.evaluation.summary import Result, summarize
from svf_rl.evaluation.turns import find_toolbox
from svf_rl.experts.pool import ExpertPool
from svf_rl.rewards.registry import load_function, source_digest
from svf_rl.runs.run_folder import read_summary
from svf_rl.storage.files import write_json


def evaluate(arguments: EvaluationArguments) -> list[Result]:
    """
    Let the base model and each adapter do the tasks, and write what came out to the folder `out`.

    Completions that an earlier call with the same settings has graded are taken from there.

    Returns:
        `list[Result]`: task by task, the base model first.

    Raises:
        SVFError: bad input. All of it is checked before anything is written.
    """
    started = time.perf_counter()
    base = find_base_model(arguments)
    adapters = find_adapters(arguments.adapters)
    toolbox = find_toolbox(arguments, base.tokenizer)
    _note_training_rows(adapters, arguments)
    tasks = [load_items(name, arguments, base.tokenizer, toolbox=toolbox) for name in arguments.tasks]
    length = check_lengths(tasks, base.positions)
    if toolbox is not None and toolbox.factories is not None:  # whose first words nobody knows before
        length = min(arguments.max_model_length or sys.maxsize, base.positions or length)
    keys = {task.name: list(itertools.product(range(len(task.rows)), range(arguments.samples))) for task in tasks}
    labels = {BASE: None, **{adapter.label: adapter for adapter in adapters}}
    settings = {
        f"{label}/{task.file}": _settings(arguments, base, adapter, task)
        for label, adapter in labels.items()
        for task in tasks
    }
    folder = choose_folder(arguments.out, f"runs/eval-{Path(arguments.model).resolve().name}", settings)

    runs = [(label, task, folder.records(label, task.file)) for label in labels for task in tasks]
    unfinished = {
        label for label, task, path in runs if split_pending(task, keys[task.name], read_records(path), path)[1]
    }
    pool = None
    if unfinished:
        used = {adapter.label: str(adapter.folder) for adapter in adapters if adapter.label in unfinished}
        pool = ExpertPool(base.arguments, {}, used, engine=arguments, max_length=length)
    made: dict[tuple[str, str], Answers] = {}
    with folder.writing():
        for label, task, path in runs:
            made[label, task.name] = answer_items(
                pool, None if label == BASE else label, task, keys[task.name], path,
                label=label, seed=arguments.seed, batch_size=arguments.batch_size,
            )  # fmt: skip
        results = [
            summarize(
                label, task.name, task.metric, made[label, task.name], arguments.k or [1],
                base=None if label == BASE else made[BASE, task.name],
            )
            for task in tasks
            for label in labels
        ]  # fmt: skip
        write_json(
            folder.path / "summary.json",
            {
                "model": arguments.model,
                "adapters": {adapter.label: str(adapter.folder) for adapter in adapters},
                "confidence": 0.95,
                "results": [result.to_dict() for result in results],
                "seconds": round(time.perf_counter() - started, 2),
                "settings": settings,
                "version": __version__,
            },
        )
    return results


def _note_training_rows(adapters: Sequence[Adapter], arguments: EvaluationArguments) -> None:
    """Say which adapters were trained on rows of the file that is evaluated, whole."""
    path = arguments.options.data_path
    if "columns" not in arguments.tasks or path is None:
        return
    for adapter in adapters:
        trained = read_summary(adapter.folder).recipe.get("data_path")
        if isinstance(trained, str) and os.path.realpath(trained) == os.path.realpath(path):
            print(f"{adapter.label} was trained on rows of {path}, which are among those graded here", file=sys.stderr)


def _settings(arguments: EvaluationArguments, base: BaseModel, adapter: Adapter | None, task: TaskItems) -> Settings:
    """What decides the completions and their grades. Records made with other settings are not mixed with new ones."""
    sampled = task.sampling.temperature > 0
    return {
        "model": arguments.model,
        "model_fingerprint": base.fingerprint,
        "adapter": None if adapter is None else str(adapter.folder),
        "adapter_fingerprint": None if adapter is None else adapter.fingerprint,
        "task": task.name,
        "reward": task.grader.describe(),
        "max_tokens": task.sampling.max_tokens,
        "stop": task.sampling.stop,
        "samples": arguments.samples,
        "temperature": task.sampling.temperature,
        "top_p": task.sampling.top_p if sampled else None,
        # tools and environments draw from it, too
        "seed": arguments.seed if sampled or task.toolbox is not None else None,
        "dtype": base.arguments.dtype,
        "backend": arguments.backend,
        **_tool_settings(arguments),
    }


def _tool_settings(arguments: EvaluationArguments) -> Settings:
    if not (arguments.tools or arguments.environment):
        return {}
    worlds = arguments.environment or {}
    sources = [*arguments.tool_names, *([worlds] if isinstance(worlds, str) else worlds.values())]
    return {
        "tools": arguments.tool_names,
        "environment": arguments.environment,
        "max_tool_calling_iterations": arguments.max_tool_calling_iterations,
        "tool_timeout": arguments.tool_timeout,
        "max_model_length": arguments.max_model_length,
        "tools_sha256": {name: source_digest(load_function(name)) for name in sources if ":" in name},
    }
