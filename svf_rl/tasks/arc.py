"""AI2's ARC questions, for the tasks `arc_easy` and `arc_challenge`.

Clark et al., "Think you have Solved Question Answering? Try ARC", arXiv 1803.05457; CC BY-SA 4.0.

- Hub: `allenai/ai2_arc`, configuration `ARC-Easy` or `ARC-Challenge`
- files: `ARC-Easy-Train.jsonl` and so on: AI2's own rows, `{id, question: {stem, choices: [{text, label}]}, answerKey}`
- split: even rows of the training file train, odd rows validate, as in Transformer²: Easy 1126 and 1125, test 2376;
  Challenge 560 and 559, test 1172. The development files are not read
- prompt: a system message that asks for "the answer is (X)"; the user's turn has the question and its options under
  their own labels, which are digits in 2 to 5 % of the rows
- answer: the label of the right option; graded by `choice`
- target: `The answer is (X).`: there are no worked solutions
- metric: accuracy

Profile `reference`: options are lettered A to E instead of by their labels, and the answer is the letter shown. (The
published code compares with the label of the file, so that rows labelled by digits are always wrong there.)
"""

from functools import partial
from typing import Any

from datasets import Dataset

from svf_rl.errors import SVFError
from svf_rl.tasks.benchmark import alternate, choose_system_prompt, read_benchmark
from svf_rl.tasks.files import read_file
from svf_rl.tasks.options import TaskOptions
from svf_rl.tasks.task import TRAINING_COLUMNS, Hub, Splits, Task, chat, check_has_columns, check_text, graded_by

SYSTEM_PROMPT = (
    "Answer the multiple-choice question. Think step by step, then end with: the answer is (X), where X is the label "
    "of the right option."
)
_LETTERS = "ABCDE"  # of the reference
REFERENCE_SYSTEM_PROMPT = (
    "Multiple-choice questions follow. Think step by step, then finish with: the answer is (X), where X is the letter "
    "of the right choice."
)


def make_task(name: str, subset: str) -> Task:
    """The task on `subset`, `"ARC-Easy"` or `"ARC-Challenge"`; its rows have `prompt`, `answer` and `target`."""
    hub = Hub("allenai/ai2_arc", subset, folder="arc")
    return Task(name, partial(_read, hub), graded_by("choice"), columns=TRAINING_COLUMNS, hub=hub)


def _read(hub: Hub, options: TaskOptions) -> Splits:
    needed = ("train", "test")
    splits, source = read_benchmark(
        options,
        hub,
        needed,
        lambda folder: {split: read_file(folder / f"{hub.config}-{split.title()}.jsonl") for split in needed},
    )
    train, test = (_conversations(splits[split], f"{source}/{hub.config} ({split})", options) for split in needed)
    return {**alternate(train), "test": test}


def _conversations(rows: Dataset, source: str, options: TaskOptions) -> Dataset:
    check_has_columns(rows, ("question", "answerKey"), source)
    system = choose_system_prompt(options, SYSTEM_PROMPT, REFERENCE_SYSTEM_PROMPT)
    lettered = options.profile == "reference"
    return Dataset.from_list(
        [_conversation(row, f"{source}, row {number}", system, lettered) for number, row in enumerate(rows)]
    )


def _conversation(row: dict[str, Any], where: str, system: str, lettered: bool) -> dict[str, Any]:
    question, labels, texts = _parts(row, where)
    for what, values in (("the question", [question]), ("a label", labels), ("an option", texts)):
        for value in values:
            check_text(value, f"{where}: {what}")
    if len(labels) != len(texts):
        raise SVFError(f"{where} has {len(labels)} labels and {len(texts)} options: give as many")
    key = row["answerKey"]
    if key not in labels:
        raise SVFError(f"{where}: the answer {key!r} is not among the labels {', '.join(labels)}")
    if lettered:
        if len(labels) > len(_LETTERS):
            raise SVFError(
                f"{where} has {len(labels)} options, and profile reference knows {len(_LETTERS)}: leave it out"
            )
        shown = list(_LETTERS[: len(labels)])
        body = f"{question}\nOptions:\n" + "".join(f"{at}. {text}\n" for at, text in zip(shown, texts, strict=True))
        key = shown[labels.index(key)]
    else:
        body = "\n".join([question, "", *(f"({at}) {text}" for at, text in zip(labels, texts, strict=True))])
    return {"prompt": chat(body, system), "answer": key, "target": f"The answer is ({key})."}


def _parts(row: dict[str, Any], where: str) -> tuple[str, list[str], list[str]]:
    """Question, labels and options, from AI2's own layout or that of the Hub (`question`, `choices: {label, text}`)."""
    question = row["question"]
    try:
        if isinstance(question, str):
            return question, list(row["choices"]["label"]), list(row["choices"]["text"])
        options = question["choices"]
        return question["stem"], [each["label"] for each in options], [each["text"] for each in options]
    except (KeyError, TypeError) as error:
        raise SVFError(f"{where} has neither the layout of AI2's files nor that of the Hub's dataset") from error
