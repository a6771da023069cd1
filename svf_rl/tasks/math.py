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
from pathlib import Path
from typing import Any

from datasets import Dataset

from svf_rl.errors import SVFError
from svf_rl.tasks.benchmark import (
    alternate,
    as_splits,
    choose_hub_dataset,
    choose_system_prompt,
    find_local_folder,
    from_rows,
    is_local,
)
from svf_rl.tasks.files import read_folder, read_hub
from svf_rl.tasks.options import TaskOptions
from svf_rl.tasks.task import TRAINING_COLUMNS, Hub, Splits, Task, chat, check_has_columns, graded_by

logger = logging.getLogger(__name__)

HUB = Hub("DigitalLearningGmbH/MATH-lighteval", "default")
SYSTEM_PROMPT = r"Solve the maths problem. Reason step by step, and put the final answer inside \boxed{}."


def load(options: TaskOptions) -> Splits:
    """`prompt`, `answer` and `target`."""
    folder = find_local_folder(options, "math")
    name, config = choose_hub_dataset(options, HUB)
    files = read_hub(name, config, ["test"]) if folder is None else read_folder(folder, ["test"])
    source = Path(name) if folder is None else folder
    system = choose_system_prompt(options, SYSTEM_PROMPT, SYSTEM_PROMPT)
    test = _problems(files["test"], f"{source} (test)")
    seen = {"".join(problem.split()) for problem, *_ in test}
    train = validation = None
    if "train" in files:
        problems = _problems(files["train"], f"{source} (train)")
        unseen = [row for row in problems if "".join(row[0].split()) not in seen]
        _say_left_out(len(problems) - len(unseen), "are test problems too", f"{source} (train)")
        train, validation = alternate(_conversations(unseen, system))
    return as_splits(options, train, validation, _conversations(test, system))


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


def _problems(rows: Dataset, source: str) -> list[tuple[str, str, str]]:
    """(problem, answer, target) of every row that has an answer."""
    check_has_columns(rows, ("problem",), source)
    if not {"solution", "answer"} & set(rows.column_names):
        raise SVFError(f"{source} has neither a column 'solution' nor 'answer'; it has: {', '.join(rows.column_names)}")
    answered = [(row["problem"], answer, target) for row in rows for answer, target in [_answer(row)] if answer]
    _say_left_out(len(rows) - len(answered), "have no answer", source)
    return answered


def _answer(row: dict[str, Any]) -> tuple[str, str]:
    """The bare answer, and the text that gives it."""
    solution = row.get("solution") or ""
    boxed = last_boxed(solution)
    if boxed is not None:
        return boxed.strip(), solution
    answer = (row.get("answer") or "").strip()
    return answer, rf"\boxed{{{answer}}}"


def _say_left_out(count: int, why: str, source: str) -> None:
    if count:
        logger.warning("%s: %d rows %s and are left out", source, count, why)


def _conversations(problems: list[tuple[str, str, str]], system: str) -> Dataset:
    return from_rows(
        {"prompt": chat(problem, system), "answer": answer, "target": target} for problem, answer, target in problems
    )


TASK = Task(
    "math", load, graded_by("math"), is_local, columns=TRAINING_COLUMNS, hub=HUB, folder="math", max_tokens=1024
)
