r"""Task `dispatch`: which expert a prompt is for: `code`, `math`, `reasoning` or `other`.

The classifier of Transformer² (arXiv 2501.06252, section 3.2), trained to say the class in `\boxed{}`.

- Hub and files: those of `gsm8k` (math), `mbpp` (code) and `arc_easy` (reasoning); `other` is generated
  (`other_requests.py`), since no expert's data has such rows
- split: for each class 320 rows for training and 80 for validation (400, 4:1), and 64 more for the test
- prompt: a system message that describes the classes; the user's turn is that of the other task, without its
  system message and without the beginning of an answer
- answer: the class; graded by `dispatch_label`
- target: the class in `\boxed{}`
- metric: accuracy

All rows come from the *training* files of the three tasks (their training and validation rows, since MBPP has 464 of
both together), in a fixed random order; rows whose question is a test question of the task are left out. So the
classifier has seen no prompt that an expert is tested on. (The published code uses the test sets of GSM8K and
ARC-Challenge.)

Profile `reference`: three classes of rows and no `other`, which stays a possible answer; of 400 rows a class four in
five are drawn for training, whose even rows train and odd rows validate, and every fifth is a test row.
"""

from collections.abc import Mapping, Sequence
from random import Random

from datasets import Dataset

from svf_rl.errors import SVFError
from svf_rl.tasks import arc_easy, gsm8k, mbpp
from svf_rl.tasks.benchmark import choose_system_prompt
from svf_rl.tasks.options import TaskOptions
from svf_rl.tasks.other_requests import other_requests
from svf_rl.tasks.task import TRAINING_COLUMNS, Splits, Task, chat, graded_by

SOURCES = {"math": gsm8k.TASK, "code": mbpp.TASK, "reasoning": arc_easy.TASK}
SIZES = {"train": 320, "validation": 80, "test": 64}
SYSTEM_PROMPT = r"""Decide which kind of request the user makes. Do not answer the request itself.

- code: asks for a program, a function or an algorithm
- math: asks for a calculation, or for the solution of a mathematical problem
- reasoning: asks about science or everyday facts, which takes knowledge and logical thinking
- other: anything else

Where several fit, choose the one that matters most. End with the class in a box, like \boxed{reasoning}."""


def read(options: TaskOptions) -> Splits:
    """`prompt`, `answer` and `target`."""
    if options.data_path is not None or options.dataset_name is not None:
        raise SVFError("task dispatch reads the data of gsm8k, mbpp and arc_easy: give data_dir, or the Hub's names")
    parts = {label: _cut(_questions(task, options), options.profile) for label, task in SOURCES.items()}
    if options.profile == "default":
        parts["other"] = {split: other_requests(split, size) for split, size in SIZES.items()}
    system = choose_system_prompt(options, SYSTEM_PROMPT)
    return {split: _conversations({label: part[split] for label, part in parts.items()}, system) for split in SIZES}


def last_user_message(conversation: Sequence[Mapping[str, str]]) -> str:
    """All that a classifier reads of a conversation: the system message would reveal the task, and a prefilled answer
    would be continued. Raises `SVFError` where there is no turn of the user."""
    turns = [message["content"] for message in conversation if message["role"] == "user"]
    if not turns:
        raise SVFError("a conversation has no user turn, so there is nothing to classify: add one")
    return turns[-1]


def _questions(task: Task, options: TaskOptions) -> list[str]:
    """The user's turns of the task's training and validation rows, in a fixed random order."""
    found: dict[str, dict[str, str]] = {}  # by split, and by the question without white space
    for split, rows in task.load(TaskOptions(data_dir=options.data_dir)).items():
        assert rows is not None
        asked = [last_user_message(prompt) for prompt in rows["prompt"]]
        found[split] = {"".join(question.split()): question for question in asked}
    training = found["train"] | found["validation"]
    questions = [question for key, question in training.items() if key not in found["test"]]
    Random(f"dispatch {task.name}").shuffle(questions)
    return questions


def _cut(questions: Sequence[str], profile: str) -> dict[str, list[str]]:
    if len(questions) < sum(SIZES.values()):
        raise SVFError(
            f"task dispatch needs {sum(SIZES.values())} training rows of each task: one has {len(questions)}"
        )
    if profile == "reference":
        taken = list(questions[: SIZES["train"] + SIZES["validation"]])
        train = [question for i, question in enumerate(taken) if i % 5 < 4]
        return {"train": train[::2], "validation": train[1::2], "test": taken[4::5]}
    rest = iter(questions)
    return {split: [next(rest) for _ in range(size)] for split, size in SIZES.items()}


def _conversations(questions: dict[str, list[str]], system: str) -> Dataset:
    """The classes take turns, so that the first rows of a split contain all of them."""
    return Dataset.from_list(
        [
            {"prompt": chat(question, system), "answer": label, "target": rf"\boxed{{{label}}}"}
            for turn in zip(*questions.values(), strict=True)
            for label, question in zip(questions, turn, strict=True)
        ]
    )


TASK = Task("dispatch", read, graded_by("dispatch_label"), columns=TRAINING_COLUMNS, max_tokens=256)
