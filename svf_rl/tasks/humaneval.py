"""Task `humaneval`: Python functions from their head and docstring, for evaluation only.

Chen et al., "Evaluating Large Language Models Trained on Code", arXiv 2107.03374; MIT licence.

- Hub: `openai/openai_humaneval`
- files: `HumanEval.jsonl.gz` (164 rows), or unpacked `HumanEval.jsonl`
- split: test 164; no training rows
- prompt: the user's turn holds the head and docstring; the assistant's begins with the opening of a code block, so that
  the answer is the whole function
- answer: a mapping: `prompt`, `test` (which defines `check(candidate)`), `entry_point`; graded by `unit_tests`
- metric: pass@k; a completion ends at the closing fence

Profile `reference`: the assistant's turn begins with the head and docstring too, so that the answer is the body.
"""

from pathlib import Path
from typing import Any

from svf_rl.tasks.benchmark import (
    as_splits,
    choose_hub_dataset,
    choose_system_prompt,
    find_local_folder,
    from_rows,
    is_local,
)
from svf_rl.tasks.files import read_file, read_hub
from svf_rl.tasks.mbpp import REFERENCE_SYSTEM_PROMPT, SYSTEM_PROMPT
from svf_rl.tasks.options import TaskOptions
from svf_rl.tasks.task import Hub, Splits, Task, chat, check_has_columns, graded_by, prefill

HUB = Hub("openai/openai_humaneval")
FILES = ("HumanEval.jsonl.gz", "HumanEval.jsonl")


def load(options: TaskOptions) -> Splits:
    """Test rows with `prompt`, and `answer` with the tests."""
    folder = find_local_folder(options, "humaneval")
    if folder is None:
        name, config = choose_hub_dataset(options, HUB)
        table, source = read_hub(name, config, ["test"])["test"], name
    else:
        path = _file(folder)
        table, source = read_file(path), str(path)
    check_has_columns(table, ("prompt", "test", "entry_point"), source)
    system = choose_system_prompt(options, SYSTEM_PROMPT, REFERENCE_SYSTEM_PROMPT)
    rows = from_rows(
        {
            "prompt": _conversation(row, system, options.profile),
            "answer": {key: row[key] for key in ("prompt", "test", "entry_point")},
        }
        for row in table
    )
    return as_splits(options, None, None, rows)


def _file(folder: Path) -> Path:
    present = [folder / name for name in FILES if (folder / name).is_file()]
    return present[0] if present else folder / FILES[0]


def _conversation(row: dict[str, Any], system: str, profile: str) -> list[dict[str, str]]:
    question = f"Complete this function:\n```python\n{row['prompt'].strip()}\n```"
    head = row["prompt"] if profile == "reference" else ""
    return prefill(chat(question, system), f"```python\n{head}")


TASK = Task(
    "humaneval",
    load,
    graded_by("unit_tests"),
    is_local,
    columns=frozenset({"prompt", "answer"}),
    hub=HUB,
    folder="humaneval",
    stop=("\n```",),
    metric="pass_at_k",
    trainable=False,
)
