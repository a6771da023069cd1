"""Task `reasoning_gym`: any data set of reasoning-gym, which makes its rows (github.com/open-thought/reasoning-gym).

    task: reasoning_gym
    dataset: word_sorting
    config: {min_words: 2, max_words: 3}
    shots: 2

Stojanovski et al., "Reasoning Gym", arXiv 2505.24760; Apache 2.0; the extra `reasoning`. Several data sets in
proportions are a `mixture` of `reasoning_gym:word_sorting` and the like.

- data: generated, the same on every machine
- split: a question belongs to training (7 of 10), validation (1 of 10) or test (2 of 10) by a digest of its text: no
  two runs can train on what another one is tested on, whatever their configurations. 1024, 128 and 512 rows, or as many
  as are asked for; no question twice. Of a data set with few different questions these are fewer
- prompt: the question, after `system_prompt` where it is given
- answer: `answer`, where there is a single right one as text, else empty; graded by `reasoning_gym`, which takes the
  data set's own scorer with its partial scores, from `entry` (data set, configuration and position, as JSON).
  `exact_match` reads `answer`
- target: the answer
- curriculum: `curriculum: {min_words: [2, 3], max_words: [2, 4]}` has training rows of each level, of which training
  takes the next when it is good at one; validation and test rows are of the last. A question that several levels have
  is in the first of them
- metric: accuracy
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Set
from typing import Any

from datasets import Dataset, concatenate_datasets

from svf_rl.errors import SVFError
from svf_rl.rewards.verifiers.reasoning_gym import make_entries
from svf_rl.tasks.options import TaskOptions
from svf_rl.tasks.task import RewardSpec, Splits, Task, chat, check_items

READS = frozenset({"dataset", "config", "curriculum"})
ITEMS = {"train": 1024, "validation": 128, "test": 512}
_TENTHS = {"validation": 1, "test": 3}  # the first of ten, the two after it; training has the rest
LEVEL = "curriculum_level"
_AT_ONCE = 64
# Entries in a row without a new question, after which there are no more
_PATIENCE = 1024


def read(options: TaskOptions) -> Splits:
    """`prompt`, `answer`, `target`, `entry`; with a curriculum, training rows have their level too."""
    if not options.dataset:
        raise SVFError("task reasoning_gym needs the name of a data set, as in dataset: word_sorting")
    wanted = {}
    for split, default in ITEMS.items():
        items = getattr(options, f"{split}_items")
        check_items(split, items)  # here, since fewer than none are never drawn
        wanted[split] = items or default
    *others, last = levels = _levels(options)
    wanted["train"] = -(-(wanted["train"] + max(options.shots, 0)) // len(levels))
    train: list[Dataset] = []
    taken: set[str] = set()
    for level in others:
        rows = _drawn(options, level, {"train": wanted["train"]}, taken)["train"]
        taken |= {str(row["question"]) for row in rows}
        train.append(_table(options, level, rows))
    found = _drawn(options, last, wanted, taken)
    splits: Splits = {split: _table(options, last, rows) for split, rows in found.items()}
    if others:
        splits["train"] = _in_turn([*train, splits["train"]])
    return splits


def _in_turn(levels: list[Dataset]) -> Dataset:
    """The rows of all levels, with their level: the first of each, the second of each, …"""
    rows = concatenate_datasets([rows.add_column(LEVEL, [level] * len(rows)) for level, rows in enumerate(levels)])
    places = [place for level in levels for place in range(len(level))]
    return rows.select(sorted(range(len(rows)), key=lambda row: places[row]))


def _levels(options: TaskOptions) -> list[dict[str, Any]]:
    """The configurations of the curriculum, or the only one."""
    given = options.curriculum
    if not given:
        return [dict(options.config or {})]
    lengths = {len(values) if isinstance(values, list) else 0 for values in given.values()}
    if len(lengths) != 1 or min(lengths) < 2:
        raise SVFError("curriculum must have a list of at least two values for each setting, all of one length")
    return [
        {**(options.config or {}), **{key: values[level] for key, values in given.items()}} for level in range(*lengths)
    ]


def _drawn(
    options: TaskOptions, config: Mapping[str, Any], wanted: Mapping[str, int], taken: Set[str]
) -> dict[str, list[dict[str, Any]]]:
    assert options.dataset is not None
    rows = _draw(options.dataset, config, wanted, taken)
    for split, found in rows.items():
        if not found:
            raise SVFError(f"reasoning-gym's {options.dataset} has too few different questions for a {split} split")
    return rows


def split_of(question: str) -> str:
    """The split that a question belongs to."""
    digest = hashlib.sha256(" ".join(question.split()).encode()).digest()
    tenth = int.from_bytes(digest[:8], "little") % 10
    return next((split for split, end in _TENTHS.items() if tenth < end), "train")


def _draw(
    dataset: str, config: Mapping[str, Any], wanted: Mapping[str, int], taken: Set[str]
) -> dict[str, list[dict[str, Any]]]:
    """The first rows of each split, as many as `wanted`, less the questions that are `taken`."""
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in wanted}
    seen: set[str] = set()
    last_new = 0
    for position, entry in _entries(dataset, config):
        question = str(entry["question"])
        if question not in seen:
            seen.add(question)
            last_new = position
            split = split_of(question)
            if split in wanted and len(rows[split]) < wanted[split] and question not in taken:
                rows[split].append({**entry, "position": position})
        if all(len(rows[split]) == count for split, count in wanted.items()) or position - last_new > _PATIENCE:
            return rows
    raise AssertionError("entries do not end")


def _entries(dataset: str, config: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, str | None]]]:
    first, count = 0, 8  # few at first: a puzzle can take a second
    while True:
        yield from enumerate(make_entries(dataset, config, first, count), first)
        first, count = first + count, min(2 * count, _AT_ONCE)


def _table(options: TaskOptions, config: Mapping[str, Any], rows: list[dict[str, Any]]) -> Dataset:
    named = {"dataset": options.dataset, "config": dict(config)}
    answers = [row["answer"] for row in rows]
    columns = {
        "prompt": [chat(row["question"], options.system_prompt) for row in rows],
        "answer": [answer or "" for answer in answers],
        "entry": [json.dumps({**named, "position": row["position"]}) for row in rows],
    }
    return Dataset.from_dict(columns if None in answers else {**columns, "target": answers})


def rewards(options: TaskOptions) -> tuple[RewardSpec, ...]:
    return ({"name": "reasoning_gym", "column": "entry", "partial": True},)


TASK = Task("reasoning_gym", read, rewards, is_local=lambda options: True, max_tokens=256, reads=READS)
