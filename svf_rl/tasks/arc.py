"""AI2's ARC questions, for the tasks `arc_easy` and `arc_challenge`.

Clark et al., "Think you have Solved Question Answering? Try ARC", arXiv 1803.05457; CC BY-SA 4.0.

- Hub: `allenai/ai2_arc`, configuration `ARC-Easy` or `ARC-Challenge`
- files: `ARC-Easy-Train.jsonl` and so on: AI2's own rows, `{id, question: {stem, choices: [{text, label}]}, answerKey}`
- split: even rows of the training file train, odd rows validate, as in Transformer²: Easy 1126 and 1125, test 2376;
  Challenge 560 and 559, test 1172. The development files are not read
- prompt: a system message that asks for "the answer is (X)"; the user's turn holds the question and its options under
  their own labels, which are digits in 2 to 5 % of the rows
- answer: the label of the right option; graded by `choice`
- target: `The answer is (X).`: there are no worked solutions
- metric: accuracy

Profile `reference`: options are lettered A to E whatever their labels, and the answer is the letter shown. (The
published code compares with the label of the file, so that rows labelled by digits are always wrong there.)
"""

from pathlib import Path
from typing import Any

from datasets import Dataset

from svf_rl.errors import SVFError
from svf_rl.tasks.benchmark import alternate, as_splits, choose_hub_dataset, from_rows, local_folder, system_prompt
from svf_rl.tasks.files import read_file, read_hub
from svf_rl.tasks.options import TaskOptions
from svf_rl.tasks.task import Hub, Splits, chat, check_has_columns

HUB_NAME = "allenai/ai2_arc"
SYSTEM_PROMPT = (
    "Answer the multiple-choice question. Think step by step, then end with: the answer is (X), where X is the label "
    "of the right option."
)
REFERENCE_SYSTEM_PROMPT = (
    "Multiple-choice questions follow. Think step by step, then finish with: the answer is (X), where X is the letter "
    "of the right choice."
)


def load_arc(subset: str, options: TaskOptions) -> Splits:
    """`prompt`, `answer` and `target` of `subset`, `"ARC-Easy"` or `"ARC-Challenge"`."""
    folder = local_folder(options, "arc")
    if folder is None:
        name, config = choose_hub_dataset(options, Hub(HUB_NAME, subset))
        files, source = read_hub(name, config, ["train", "test"]), Path(name)
    else:
        files = {split: read_file(folder / f"{subset}-{split.title()}.jsonl") for split in ("train", "test")}
        source = folder / subset
    train, test = (_conversations(files[split], f"{source} ({split})", options) for split in ("train", "test"))
    return as_splits(options, *alternate(train), test)


def _conversations(rows: Dataset, source: str, options: TaskOptions) -> Dataset:
    check_has_columns(rows, ("question", "answerKey"), source)
    system = system_prompt(options, SYSTEM_PROMPT, REFERENCE_SYSTEM_PROMPT)
    return from_rows(_row(row, f"{source}, row {number}", options, system) for number, row in enumerate(rows))


def _row(row: dict[str, Any], where: str, options: TaskOptions, system: str) -> dict[str, Any]:
    question, labels, texts = _parts(row, where)
    key = row["answerKey"]
    if key not in labels:
        raise SVFError(f"{where}: the answer {key!r} is not among the labels {', '.join(labels)}")
    if options.profile == "reference":
        shown = list("ABCDE"[: len(labels)])
        body = f"{question}\nOptions:\n" + "".join(f"{at}. {text}\n" for at, text in zip(shown, texts, strict=True))
        return _columns(body, system, shown[labels.index(key)])
    lines = [question, "", *(f"({label}) {text}" for label, text in zip(labels, texts, strict=True))]
    return _columns("\n".join(lines), system, key)


def _columns(question: str, system: str, label: str) -> dict[str, Any]:
    return {"prompt": chat(question, system), "answer": label, "target": f"The answer is ({label})."}


def _parts(row: dict[str, Any], where: str) -> tuple[str, list[str], list[str]]:
    """Question, labels and options, from AI2's own layout or that of the Hub (`question`, `choices: {label, text}`)."""
    question = row["question"]
    try:
        if isinstance(question, str):
            return question, row["choices"]["label"], row["choices"]["text"]
        options = question["choices"]
        return question["stem"], [each["label"] for each in options], [each["text"] for each in options]
    except (KeyError, TypeError) as error:
        raise SVFError(f"{where} is laid out neither as AI2's files are nor as the Hub's dataset is") from error
