"""`svf-rl few-shot`: from a model, its experts and a task to an adapter and a table."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from svf_rl import __version__
from svf_rl.adaptation.arguments import FewShotArguments
from svf_rl.adaptation.few_shot import FewShotResult, adapt, draw_shots, unseen
from svf_rl.errors import SVFError
from svf_rl.evaluation.adapters import BASE
from svf_rl.evaluation.answers import answer_items
from svf_rl.evaluation.arguments import EvaluationArguments
from svf_rl.evaluation.base_model import find_base_model
from svf_rl.evaluation.items import TaskItems, check_lengths, load_items
from svf_rl.evaluation.records import Answers
from svf_rl.evaluation.summary import Result, summarize
from svf_rl.experts.pool import ExpertPool, Mix
from svf_rl.runs.model_card import write_model_card
from svf_rl.runs.summary import RunSummary
from svf_rl.storage.files import write_json
from svf_rl.storage.folders import check_writable
from svf_rl.storage.locks import hold_folder
from svf_rl.svf.combine import even_weights
from svf_rl.tasks.files import kind_of_path
from svf_rl.tasks.parts import find_named_task

# Where the labelled prompts are drawn from: rows that no figure is reported on, where the task has such rows.
LABELLED = ("validation", "test")

MEAN, FEW_SHOT = "mean", "few-shot"


def experts_by_name(given: list[str]) -> dict[str, str]:
    """`NAME=DIR` or `DIR`, which is called by its last part. Raises `SVFError` for a name given twice."""
    experts: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or kind_of_path(Path(text)) == "folder":  # runs/learning_rate=0.01
            name, path = Path(text).name or Path(text).resolve().name, text
        if not name or not path:
            raise SVFError(f"--expert {text}: give a folder, or a name for it as in math=runs/math")
        if name in experts:
            raise SVFError(f"two experts are called {name}: give them names, as in --expert other={path}")
        experts[name] = path
    return experts


def few_shot(
    arguments: EvaluationArguments, experts: Mapping[str, str], search: FewShotArguments, out: Path
) -> tuple[FewShotResult, list[Result]]:
    """
    Find the weights of the experts on a few labelled prompts of a task, save the combination as an adapter, and compare
    it with the base, each expert and their mean on the items that the search did not see.

    The folder `out` gets `search.json` (the state of the search), `adapter/`, the graded completions of each method and
    `summary.json`. The same call resumes after an interruption.

    Args:
        arguments ([`EvaluationArguments`]): the model, one task, and how it is evaluated.
        experts (`Mapping`): folder or Hub name of each expert, by the name it is to have.
        search ([`FewShotArguments`]): how to search.
        out (`Path`): a new or empty folder, or that of an earlier call.

    Returns:
        The combination, and how the base, each expert, their mean and the combination did on the unseen items.

    Raises:
        SVFError: bad input. All of it is checked before anything is written.
    """
    started = time.perf_counter()
    _check_names(experts)
    check_writable(out, "give another --out")
    (task,) = arguments.tasks
    base = find_base_model(arguments)
    labelled = load_items(task, replace(arguments, limit=None), base.tokenizer, splits=LABELLED)
    items = load_items(task, arguments, base.tokenizer)
    rows = unseen(items, labelled, draw_shots(labelled, search.shots, search.seed))
    if not rows:
        raise SVFError(f"task {task}: no items are left to report beside the {search.shots} shots: give fewer --shots")
    with hold_folder(out):
        length = check_lengths([labelled, items], base.positions)
        pool = ExpertPool(base.arguments, experts, engine=arguments, max_length=length)
        found = adapt(pool, labelled, search, out)
        if not (out / "adapter").exists():  # as an earlier call with the same outcome wrote it
            pool.save(found.mix, out / "adapter")
        folder = out / "completions"
        results = compare(pool, items, rows, found.mix, folder, arguments.seed, arguments.batch_size)
        summary = {
            "model": arguments.model,
            "task": labelled.name,
            "experts": dict(experts),
            "few_shot": found.to_dict(),
            "labelled_prompts": [labelled.prompts[row] for row in found.shots],
            "confidence": 0.95,
            "results": [result.to_dict() for result in results],
            "seconds": round(time.perf_counter() - started, 2),
            "version": __version__,
        }
        write_json(out / "summary.json", summary)
        # the summary and the card that every adapter has, so that it is listed and published like a trained one
        accuracy = {result.label: result.accuracy.value if result.accuracy else None for result in results}
        own = RunSummary(
            recipe={
                "model_name_or_path": arguments.model,
                "dtype": base.arguments.dtype,
                "adapter": "combination",
                "experts": list(experts.values()),
                **_task_keys(task, arguments),
            },
            base_accuracy=accuracy[BASE],
            accuracy=accuracy[FEW_SHOT],
            items=results[0].items,
            seed=search.seed,
            trained_values=found.alpha.numel(),
        )
        write_json(out / "adapter" / "summary.json", own.to_dict())
        write_model_card(out / "adapter", own)
    return found, results


def _task_keys(name: str, arguments: EvaluationArguments) -> dict[str, Any]:
    """The task, its options and the reward as the keys of a recipe."""
    task, options = find_named_task(name, arguments.options)
    given = {f.name: getattr(options, f.name) for f in fields(options) if getattr(options, f.name) != f.default}
    rewards = {} if arguments.reward is None else {"rewards": [arguments.reward]}
    return {"task": task.name, **given, **rewards}


def _check_names(experts: Iterable[str]) -> None:
    """Raises `SVFError` for an expert with the label of another method, or with a name that no file can have."""
    for name in experts:
        if name in (BASE, MEAN, FEW_SHOT):
            raise SVFError(f"an expert cannot be called {name}, which stands for something else: give it another name")
        if "/" in name or name in ("", ".", ".."):
            raise SVFError(
                f"an expert cannot be called {name!r}, which is not a valid name of a file: give it another name"
            )


def compare(
    pool: ExpertPool,
    items: TaskItems,
    rows: Sequence[int],
    found: Mix,
    folder: Path,
    seed: int = 0,
    batch_size: int | None = None,
) -> list[Result]:
    """
    Let the base model, each expert, the mean of all and the combination that was found answer the same items.

    Args:
        pool ([`ExpertPool`]): generates.
        items ([`TaskItems`]): of which `rows` are asked, such as [`svf_rl.adaptation.few_shot.unseen`] gives.
        found ([`Mix`]): the combination.
        folder (`Path`): for the graded completions, `<label>.jsonl`. Those that are there are not made again: it must
            be of the same pool and combination.
        seed (`int`, *optional*, defaults to 0): of the items' sampling, where that is not greedy.
        batch_size (`int`, *optional*): completions written together; default: all.

    Returns:
        `list[Result]`: in this order; each but the first is compared with the base model item by item.

    Raises:
        SVFError: records of other items, or too many checks that failed by themselves.
    """
    mean = Mix(even_weights(len(pool.names), 1))
    methods = {BASE: None, **{name: name for name in pool.names}, MEAN: mean, FEW_SHOT: found}
    keys = [(row, 0) for row in rows]
    results: list[Result] = []
    base: Answers | None = None
    for label, which in methods.items():
        path = folder / f"{label}.jsonl"
        answers = answer_items(pool, which, items, keys, path, label=label, seed=seed, batch_size=batch_size)
        results.append(summarize(label, items.name, items.metric, answers, base=base))
        base = base or answers
    return results


def alpha_table(found: FewShotResult) -> list[dict[str, str]]:
    """A line for each group of weights that shares its α, for [`svf_rl.text_table.aligned`]."""
    kind = "weights" if found.mix.scope == "global" else found.mix.scope
    lines = []
    for group, alphas in enumerate(found.alpha.tolist()):
        head = "all" if found.mix.scope == "global" else str(group)
        lines.append({kind: head, **{f"α {n}": f"{a:.3f}" for n, a in zip(found.experts, alphas, strict=True)}})
    return lines
