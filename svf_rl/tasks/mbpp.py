"""Task `mbpp`: small Python functions, graded by their tests.

Austin et al., "Program Synthesis with Large Language Models", arXiv 2108.07732; CC BY 4.0.

- Hub: `google-research-datasets/mbpp`, configuration `full`, or `sanitized` by `dataset_config: sanitized`
- files: `mbpp.jsonl` (974 rows), or `sanitized-mbpp.json` (427 rows, checked by hand)
- split: by `task_id`, as its authors have it: 601–974 train, 511–600 validate, 11–510 test; 1–10 are left for few-shot
  prompts. `full`: 374, 90, 500 rows; `sanitized`: 120, 43, 257
- prompt: the user's turn holds the task and its tests, as in the paper: without one, the function's name is unknown.
  The assistant's turn begins with the opening of a code block
- answer: a mapping: `test_list`, `test_setup_code` (to run after the solution), `test_imports`; graded by `unit_tests`
- target: the reference program and the closing fence; none where a file has no column `code`
- metric: pass@k; a completion ends at the closing fence

Profile `reference`: the sanitized tasks in the order of `task_id`; the first 300, shuffled by Python's
`random.Random(16)`, give 200 for training and 100 for validation, and the rest is the test. Only the first test is
shown. The published code reads the tasks from EvalPlus, whose first release has 399 of the 427: its 99 test rows are
those behind the figures of the paper (64.65 % is 64 of 99), and are not the 127 here.
"""

import random
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from svf_rl.errors import SVFError
from svf_rl.tasks.benchmark import (
    as_splits,
    choose_hub_dataset,
    choose_system_prompt,
    find_local_folder,
    from_rows,
    is_local,
)
from svf_rl.tasks.files import SPLITS, read_file, read_hub
from svf_rl.tasks.options import TaskOptions
from svf_rl.tasks.task import TRAINING_COLUMNS, Hub, Splits, Task, chat, check_has_columns, graded_by, prefill

HUB = Hub("google-research-datasets/mbpp", "full")
FILES = {"full": "mbpp.jsonl", "sanitized": "sanitized-mbpp.json"}
SYSTEM_PROMPT = "Write a Python function that solves the task. Answer with one code block and nothing else."
REFERENCE_SYSTEM_PROMPT = "You are a very able programming assistant. Follow the instructions reliably and accurately."

TASK_IDS = {"train": range(601, 975), "validation": range(511, 601), "test": range(11, 511)}
REFERENCE_POOL, REFERENCE_TRAIN, REFERENCE_SEED = 300, 200, 16


def load(options: TaskOptions) -> Splits:
    """`prompt`, `answer` with the tests, and `target`."""
    rows = _read(options)
    tables = {split: _conversations(part, options) for split, part in _split(rows, options.profile).items()}
    for split, table in tables.items():
        if len(table) == 0:
            raise SVFError(f"MBPP's {split} split, task_id {TASK_IDS[split][0]} to {TASK_IDS[split][-1]}, has no rows")
    return as_splits(options, tables["train"], tables["validation"], tables["test"])


def _read(options: TaskOptions) -> list[dict[str, Any]]:
    """All tasks in the order of `task_id`."""
    config = options.dataset_config or ("sanitized" if options.profile == "reference" else HUB.config)
    folder = find_local_folder(options, "mbpp")
    if folder is None:
        name, _ = choose_hub_dataset(options, HUB)
        source = name
        splits = read_hub(name, config if options.dataset_name is None else options.dataset_config, [])
        table = concatenate_datasets([rows for split, rows in splits.items() if split in (*SPLITS, "prompt")])
    elif config in FILES:
        source = str(folder / FILES[config])
        table = read_file(Path(source))
    else:
        raise SVFError(f"MBPP has no configuration {config!r}: use {' or '.join(FILES)}")
    check_has_columns(table, ("task_id", "test_list"), source)
    if not {"text", "prompt"} & set(table.column_names):
        raise SVFError(f"{source} has neither a column 'text' nor 'prompt'; it has: {', '.join(table.column_names)}")
    return sorted(table, key=lambda row: row["task_id"])


def _split(rows: list[dict[str, Any]], profile: str) -> dict[str, list[dict[str, Any]]]:
    if profile == "reference":
        pool = list(range(min(REFERENCE_POOL, len(rows))))
        random.Random(REFERENCE_SEED).shuffle(pool)
        return {
            "train": [rows[i] for i in pool[:REFERENCE_TRAIN]],
            "validation": [rows[i] for i in pool[REFERENCE_TRAIN:]],
            "test": rows[REFERENCE_POOL:],
        }
    return {split: [row for row in rows if row["task_id"] in ids] for split, ids in TASK_IDS.items()}


def _conversations(rows: list[dict[str, Any]], options: TaskOptions) -> Dataset:
    system = choose_system_prompt(options, SYSTEM_PROMPT, REFERENCE_SYSTEM_PROMPT)
    return from_rows(
        {
            "prompt": prefill(chat(_question(row, options.profile), system), "```python\n"),
            "answer": {
                "test_list": row["test_list"],
                "test_setup_code": row.get("test_setup_code") or "",
                "test_imports": row.get("test_imports") or [],
            },
            "target": row["code"].replace("\r\n", "\n").strip() + "\n```" if row.get("code") else None,
        }
        for row in rows
    )


def _question(row: dict[str, Any], profile: str) -> str:
    task = (row.get("text") or row["prompt"]).strip()
    if profile == "reference":
        return f"{task} Your code should satisfy this assertion:\n```python\n{row['test_list'][0]}\n```"
    tests = "\n".join(test.strip() for test in row["test_list"])
    return f"{task}\nYour code should pass these tests:\n\n{tests}"


TASK = Task(
    "mbpp",
    load,
    graded_by("unit_tests"),
    is_local,
    columns=TRAINING_COLUMNS,
    hub=HUB,
    folder="mbpp",
    stop=("\n```",),
    metric="pass_at_k",
)
