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

from datasets import Dataset

from svf_rl.tasks.benchmark import choose_system_prompt, read_benchmark
from svf_rl.tasks.files import kind_of_path, read_file
from svf_rl.tasks.mbpp import REFERENCE_SYSTEM_PROMPT, SYSTEM_PROMPT
from svf_rl.tasks.options import TaskOptions
from svf_rl.tasks.task import Hub, Splits, Task, chat, check_texts, graded_by

HUB = Hub("openai/openai_humaneval", None, folder="humaneval")
PACKED, UNPACKED = "HumanEval.jsonl.gz", "HumanEval.jsonl"


def read(options: TaskOptions) -> Splits:
    """Test rows with `prompt`, and `answer` with the tests."""
    splits, source = read_benchmark(options, HUB, ["test"], _read_files)
    columns = ("prompt", "test", "entry_point")
    check_texts(splits["test"], columns, source)
    system = choose_system_prompt(options, SYSTEM_PROMPT, REFERENCE_SYSTEM_PROMPT)
    rows = []
    for row in splits["test"]:
        question = f"Complete this function:\n```python\n{row['prompt'].strip()}\n```"
        head = row["prompt"] if options.profile == "reference" else ""
        prompt = chat(question, system, beginning=f"```python\n{head}")
        rows.append({"prompt": prompt, "answer": {name: row[name] for name in columns}})
    return {"test": Dataset.from_list(rows)}


def _read_files(folder: Path) -> dict[str, Dataset]:
    unpacked = kind_of_path(folder / PACKED) != "file" and kind_of_path(folder / UNPACKED) == "file"
    return {"test": read_file(folder / (UNPACKED if unpacked else PACKED))}


TASK = Task(
    "humaneval",
    read,
    graded_by("unit_tests"),
    columns=frozenset({"prompt", "answer"}),
    hub=HUB,
    stop=("\n```",),
    metric="pass_at_k",
    trainable=False,
)
