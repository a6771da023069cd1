r"""Task `math`: competition problems whose answers are formulas.

Hendrycks et al., "Measuring Mathematical Problem Solving With the MATH Dataset", arXiv 2103.03874; MIT licence.

- Hub: `DigitalLearningGmbH/MATH-lighteval`: both splits with worked solutions
- files: `test.jsonl` (5000 rows), and for training `train.jsonl` (7500 rows)
- split: test 5000; for training, which Transformer² leaves out: even rows train, odd rows validate
- prompt: a system message that asks for the answer in `\boxed{}`; the problem is the user's turn
- answer: the last `\boxed{}` of the column `solution`, or the column `answer`; graded by `math`
- target: the worked solution, or the bare answer in `\boxed{}` where there is none
- metric: accuracy

A row needs `problem` and one of `solution` and `answer`. Rows without an answer are left out, and so are training rows
whose problem is one of the test problems; a warning says how many (in the files of `train.jsonl` above two each, which
leaves 3748 and 3748). A source with only test rows (`HuggingFaceH4/MATH-500`) is enough for evaluation.
"""

import logging
import re
from typing import Any

from datasets import Dataset

from svf_rl.errors import SVFError
from svf_rl.tasks.benchmark import alternate, choose_system_prompt, read_benchmark
from svf_rl.tasks.options import TaskOptions
from svf_rl.tasks.task import TRAINING_COLUMNS, Hub, Splits, Task, chat, check_texts, graded_by

logger = logging.getLogger(__name__)

HUB = Hub("DigitalLearningGmbH/MATH-lighteval", "default", folder="math")
SYSTEM_PROMPT = r"Solve the maths problem. Reason step by step, and put the final answer inside \boxed{}."


def read(options: TaskOptions) -> Splits:
    """`prompt`, `answer` and `target`."""
    files, source = read_benchmark(options, HUB, ["test"])
    system = choose_system_prompt(options, SYSTEM_PROMPT)
    test = _answered(files["test"], system, f"{source} (test)")
    splits: Splits = {"test": Dataset.from_list(test)}
    if "train" in files:
        asked = {_without_spaces(row) for row in test}
        train = _answered(files["train"], system, f"{source} (train)")
        unseen = [row for row in train if _without_spaces(row) not in asked]
        _say_left_out(len(train) - len(unseen), "are test problems too", f"{source} (train)")
        splits |= alternate(Dataset.from_list(unseen))
    return splits


def last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{…}` (or `\fbox{…}`, or `\boxed 5`) of a worked solution; `None` without one."""
    marks = list(re.finditer(r"\\f?box(?:ed)?\b\s*", text))
    if not marks:
        return None
    start = marks[-1].end()
    if not text.startswith("{", start):
        token = re.match(r"[^\s$]+", text[start:])
        return token[0] if token else None
    depth = 0
    for brace in re.finditer(r"(?<!\\)[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[start + 1 : start + brace.start()].strip()
    return None


def _answered(rows: Dataset, system: str, source: str) -> list[dict[str, Any]]:
    """`prompt`, `answer` and `target` of every row that has an answer."""
    check_texts(rows, ("problem",), source)
    if not {"solution", "answer"} & set(rows.column_names):
        raise SVFError(f"{source} has neither a column 'solution' nor 'answer'; it has: {', '.join(rows.column_names)}")
    answered = []
    for number, row in enumerate(rows):
        solution, given = row.get("solution") or "", row.get("answer")
        if not isinstance(solution, str) or not isinstance(given, str | int | float | None):
            raise SVFError(f"{source}, row {number}: solution must be text, and answer text or a number")
        target, answer = solution, last_boxed(solution)
        if answer is None:
            answer = "" if given is None else str(given).strip()
            target = rf"\boxed{{{answer}}}"
        if answer:
            answered.append({"prompt": chat(row["problem"], system), "answer": answer, "target": target})
    _say_left_out(len(rows) - len(answered), "have no answer", source)
    return answered


def _without_spaces(row: dict[str, Any]) -> str:
    return "".join(row["prompt"][-1]["content"].split())


def _say_left_out(count: int, why: str, source: str) -> None:
    if count:
        logger.warning("%s: %d rows %s and are left out", source, count, why)


TASK = Task("math", read, graded_by("math"), columns=TRAINING_COLUMNS, hub=HUB, max_tokens=1024)
