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

Other classes, of any tasks that have training rows, written as the parts of a mixture are:

    task: dispatch
    classes:
      maths: gsm8k
      sorting: {task: "reasoning_gym:word_sorting", description: puts words in order}
    config: {word_sorting: {min_words: 2, max_words: 3}}

The rows are made in the same way, without `other`; the system message lists the classes with their descriptions.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from datasets import Dataset

from svf_rl.errors import SVFError
from svf_rl.rewards.verifiers.dispatch_label import LABELS, check_labels
from svf_rl.tasks import arc_easy, gsm8k, mbpp
from svf_rl.tasks.benchmark import choose_system_prompt
from svf_rl.tasks.options import TaskOptions
from svf_rl.tasks.other_requests import other_requests
from svf_rl.tasks.parts import check_config, find_part
from svf_rl.tasks.task import TRAINING_COLUMNS, RewardSpec, Splits, Task, chat, has_files

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
        names = "gsm8k, mbpp and arc_easy" if options.classes is None else "several tasks"
        raise SVFError(f"task dispatch reads the data of {names}: give data_dir, or the Hub's names")
    questions = {label: _questions(label, task, own) for label, (task, own) in _sources(options).items()}
    _check_disjoint(questions)
    parts = {label: _cut(label, asked, options.profile) for label, asked in questions.items()}
    if options.profile == "default" and options.classes is None:
        parts["other"] = {split: other_requests(split, size) for split, size in SIZES.items()}
    system = choose_system_prompt(options, default_system_prompt(options.classes))
    return {split: _conversations({label: part[split] for label, part in parts.items()}, system) for split in SIZES}


def class_labels(classes: Any) -> tuple[str, ...]:
    """The classes that can be the answer: those of [`TaskOptions`], or the four without any. Raises `SVFError` for no
    mapping, fewer than two, and names that no completion can give."""
    if classes is None:
        return LABELS
    if not isinstance(classes, Mapping):
        raise SVFError(f"classes must be a mapping of names to tasks, as in {{maths: gsm8k}}, not {classes!r}")
    return check_labels(list(classes))


def default_system_prompt(classes: Mapping[str, Any] | None) -> str:
    """The system message that asks for one of the classes of [`TaskOptions`], or of the four."""
    if classes is None:
        return SYSTEM_PROMPT
    described = {label: _spec(label, classes[label])["description"] for label in class_labels(classes)}
    lines = [f"- {label}: {text}" if text else f"- {label}" for label, text in described.items()]
    head, tail = SYSTEM_PROMPT.partition("\n\n")[0], r"End with the class in a box, like"
    return "\n".join([head, "", *lines, "", rf"{tail} \boxed{{{next(iter(described))}}}."])


def _sources(options: TaskOptions) -> dict[str, tuple[Task, TaskOptions]]:
    """The task of each class, and its options."""
    own = TaskOptions(data_dir=options.data_dir, config=options.config)
    if options.classes is None:
        return {label: (task, own) for label, task in SOURCES.items()}
    named = {label: _spec(label, options.classes[label])["task"] for label in class_labels(options.classes)}
    check_config(list(named.values()), options, "dispatch")
    return {label: find_part(name, own, "dispatch") for label, name in named.items()}


def _spec(label: str, given: Any) -> dict[str, str]:
    """`task` and `description` of a class."""
    spec = {"description": "", **given} if isinstance(given, dict) else {"task": given, "description": ""}
    if set(spec) != {"task", "description"} or not all(isinstance(text, str) for text in spec.values()):
        raise SVFError(f"class {label}: give a task, as in gsm8k, or {{task: gsm8k, description: calculations}}")
    return spec


def last_user_message(conversation: Sequence[Mapping[str, str]]) -> str:
    """All that a classifier reads of a conversation: the system message would reveal the task, and a prefilled answer
    would be continued. Raises `SVFError` where there is no turn of the user."""
    turns = [message["content"] for message in conversation if message["role"] == "user"]
    if not turns:
        raise SVFError("a conversation has no user turn, so there is nothing to classify: add one")
    return turns[-1]


def _questions(label: str, task: Task, options: TaskOptions) -> list[str]:
    """The user's turns of the task's training and validation rows, in a fixed random order."""
    found: dict[str, dict[str, str]] = {}  # by split, and by the question without white space
    for split, rows in task.load(options).items():
        if rows is None:
            raise SVFError(f"class {label}: task {task.name} has no {split} rows: choose one that experts train on")
        asked = [last_user_message(prompt) for prompt in rows["prompt"]]
        found[split] = {"".join(question.split()): question for question in asked}
    training = found["train"] | found["validation"]
    questions = [question for key, question in training.items() if key not in found["test"]]
    Random(f"dispatch {task.name}").shuffle(questions)
    return questions


def _check_disjoint(questions: Mapping[str, Sequence[str]]) -> None:
    """Raises `SVFError` where a question would have two right answers."""
    owner: dict[str, str] = {}
    for label, asked in questions.items():
        for question in asked:
            other = owner.setdefault("".join(question.split()), label)
            if other != label:
                raise SVFError(f"classes {other} and {label} share questions: give each a task of its own")


def _cut(label: str, questions: Sequence[str], profile: str) -> dict[str, list[str]]:
    if len(questions) < sum(SIZES.values()):
        raise SVFError(
            f"task dispatch needs {sum(SIZES.values())} training rows of each class: {label} has {len(questions)}"
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


def rewards(options: TaskOptions) -> tuple[RewardSpec, ...]:
    if options.classes is None:
        return ({"name": "dispatch_label"},)
    return ({"name": "dispatch_label", "labels": list(class_labels(options.classes))},)


def is_local(options: TaskOptions) -> bool:
    """Whether the rows of all classes are local."""
    if options.classes is None:
        return has_files(options)
    return all(task.is_local(own) for task, own in _sources(options).values())


READS = frozenset({"classes", "config"})
TASK = Task("dispatch", read, rewards, is_local, columns=TRAINING_COLUMNS, max_tokens=256, reads=READS)
