"""The base model, its experts and combinations of them on the same items, with intervals."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from svf_rl.errors import SVFError
from svf_rl.evaluation.adapters import BASE
from svf_rl.evaluation.answers import answer_items
from svf_rl.evaluation.items import TaskItems
from svf_rl.evaluation.records import Answers
from svf_rl.evaluation.summary import Result, summarize
from svf_rl.experts.pool import ExpertPool, Mix
from svf_rl.svf.combine import even_weights

Which = str | Mix | None
"""An expert by its name, a combination, or the base model (`None`)."""

MEAN, FEW_SHOT = "mean", "few-shot"


def check_names(experts: Iterable[str]) -> None:
    """Raises `SVFError` for an expert with the label of another method, or with a name that no file can have."""
    for name in experts:
        if name in (BASE, MEAN, FEW_SHOT):
            raise SVFError(f"an expert cannot be called {name}, which stands for something else: give it another name")
        if "/" in name or name in ("", ".", ".."):
            raise SVFError(
                f"an expert cannot be called {name!r}, which is not a valid name of a file: give it another name"
            )


def methods(pool: ExpertPool, found: Mix) -> dict[str, Which]:
    """The base model, each expert, the mean of all and the combination that was found, by their labels. Raises
    `SVFError` for the name of an expert that does not go with them."""
    check_names(pool.names)
    return {
        BASE: None,
        **{name: name for name in pool.names},
        MEAN: Mix(even_weights(len(pool.names), 1)),
        FEW_SHOT: found,
    }


def compare(
    pool: ExpertPool,
    items: TaskItems,
    rows: Sequence[int],
    methods: Mapping[str, Which],
    folder: Path | None = None,
    seed: int = 0,
    batch_size: int | None = 512,
) -> list[Result]:
    """
    Let each method answer the same items.

    Args:
        pool ([`ExpertPool`]): generates.
        items ([`TaskItems`]): of which `rows` are asked, such as [`svf_rl.adaptation.few_shot.unseen`] gives.
        methods (`Mapping`): what generates, by label; where `"base"` is the first of them, each other one is compared
            with it item by item.
        folder (`Path`, *optional*): for the graded completions, `<label>.jsonl`. Those that are there are not made
            again: it must be of the same pool and methods.
        seed (`int`, *optional*, defaults to 0): of the items' sampling, where that is not greedy.
        batch_size (`int`, *optional*, defaults to 512): completions written together.

    Returns:
        `list[Result]`: in the order of the methods.

    Raises:
        SVFError: no rows, records of other items, or too many checks that failed by themselves.
    """
    if not rows:
        raise SVFError(f"task {items.name}: no items are left to report that the search has not seen")
    results: list[Result] = []
    base: Answers | None = None
    for label, which in methods.items():
        path = None if folder is None else folder / f"{label}.jsonl"
        keys = [(row, 0) for row in rows]
        answers = answer_items(pool, which, items, keys, path, label=label, seed=seed, batch_size=batch_size)
        results.append(summarize(label, items.name, items.metric, answers, base=base))
        if label == BASE:
            base = answers
    return results
