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
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from svf_rl.errors import SVFError
from svf_rl.tasks.benchmark import choose_system_prompt, read_benchmark
from svf_rl.tasks.files import read_file
from svf_rl.tasks.options import TaskOptions
from svf_rl.tasks.task import (
    SPLITS,
    TRAINING_COLUMNS,
    Hub,
    Splits,
    Task,
    chat,
    check_has_columns,
    check_text,
    graded_by,
)

HUB = Hub("google-research-datasets/mbpp", "full", folder="mbpp")
FILES = {"full": "mbpp.jsonl", "sanitized": "sanitized-mbpp.json"}
SYSTEM_PROMPT = "Write a Python function that solves the task. Answer with one code block and nothing else."
REFERENCE_SYSTEM_PROMPT = "You are a very able programming assistant. Follow the instructions reliably and accurately."

TASK_IDS = {"train": range(601, 975), "validation": range(511, 601), "test": range(11, 511)}
REFERENCE_POOL, REFERENCE_TRAIN, REFERENCE_SEED = 300, 200, 16


def read(options: TaskOptions) -> Splits:
    """`prompt`, `answer` with the tests, and `target`."""
    parts = _split(_read_rows(options), options.profile)
    for split, rows in parts.items():
        if not rows:
            raise SVFError(f"MBPP's {split} split, task_id {TASK_IDS[split][0]} to {TASK_IDS[split][-1]}, has no rows")
    system = choose_system_prompt(options, SYSTEM_PROMPT, REFERENCE_SYSTEM_PROMPT)
    return {
        split: Dataset.from_list([_conversation(row, system, options.profile) for row in rows])
        for split, rows in parts.items()
    }


def _read_rows(options: TaskOptions) -> list[dict[str, Any]]:
    """All tasks in the order of `task_id`."""
    hub = replace(HUB, config="sanitized") if options.profile == "reference" else HUB
    config = options.dataset_config or hub.config

    def read_files(folder: Path) -> dict[str, Dataset]:
        if config not in FILES:
            raise SVFError(f"MBPP has no configuration {config!r}: use {' or '.join(FILES)}")
        return {"train": read_file(folder / FILES[config])}

    splits, source = read_benchmark(options, hub, [], read_files)
    table = concatenate_datasets([rows for split, rows in splits.items() if split in (*SPLITS, "prompt")])
    check_has_columns(table, ("task_id", "test_list"), source)
    if not {"text", "prompt"} & set(table.column_names):
        raise SVFError(f"{source} has neither a column 'text' nor 'prompt'; it has: {', '.join(table.column_names)}")
    for number, row in enumerate(table):
        where = f"{source}, row {number}"
        tests = row["test_list"]
        if not isinstance(row["task_id"], int) or not isinstance(tests, list) or not tests:
            raise SVFError(f"{where}: task_id must be a whole number, and test_list a list of tests")
        for what, text in (("text or prompt", row.get("text") or row.get("prompt")), *(("a test", t) for t in tests)):
            check_text(text, f"{where}: {what}")
        if row.get("code") is not None:
            check_text(row["code"], f"{where}: code")
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


def _conversation(row: dict[str, Any], system: str, profile: str) -> dict[str, Any]:
    task = (row.get("text") or row["prompt"]).strip()
    if profile == "reference":
        question = f"{task} Your code should satisfy this assertion:\n```python\n{row['test_list'][0]}\n```"
    else:
        tests = "\n".join(test.strip() for test in row["test_list"])
        question = f"{task}\nYour code should pass these tests:\n\n{tests}"
    answer = {
        "test_list": row["test_list"],
        "test_setup_code": row.get("test_setup_code") or "",
        "test_imports": row.get("test_imports") or [],
    }
    target = row["code"].replace("\r\n", "\n").strip() + "\n```" if row.get("code") else None
    return {"prompt": chat(question, system, beginning="```python\n"), "answer": answer, "target": target}


TASK = Task(
    "mbpp", read, graded_by("unit_tests"), columns=TRAINING_COLUMNS, hub=HUB, stop=("\n```",), metric="pass_at_k"
)
