"""Task `columns`: your own dataset, from the Hub or from local files; the recipe names its columns."""

from pathlib import Path
from typing import Any

from datasets import Audio, Dataset, Image, Video

from svf_rl.errors import SVFError
from svf_rl.tasks.files import kind_of_path, read_file, read_folder, read_hub
from svf_rl.tasks.options import TaskOptions
from svf_rl.tasks.task import SPLITS, RewardSpec, Splits, Task, chat, check_has_columns, check_text

SPLIT_SEED = 0


def read(options: TaskOptions) -> Splits:
    """`prompt` from `prompt_column`, `answer` from `answer_column` if that is given, all other columns unchanged.

    Reads `data_path` (a file of training rows, or a folder with one file for each split), or else `dataset_name` on
    the Hub.
    """
    references = options.answer_column or "answer"
    if options.data_path is not None and options.dataset_name is not None:
        raise SVFError("task columns has both data_path and dataset_name: leave one of them out")
    if options.data_path is not None:
        path, source = Path(options.data_path), options.data_path
        tables = (
            read_folder(path, references=references)
            if kind_of_path(path) == "folder"
            else {"train": read_file(path, references)}
        )
    elif options.dataset_name is not None:
        source = options.dataset_name
        tables = read_hub(source, options.dataset_config)
    else:
        raise SVFError("task columns needs data_path (a local file or folder) or dataset_name (on the Hub)")
    splits = {s: _conversations(tables[s], options, f"{source} ({s})") for s in SPLITS if s in tables}
    if "validation" not in splits:
        splits["train"], splits["validation"] = _hold_out(splits["train"], options.validation_share)
    return {**splits}


def read_rows(options: TaskOptions) -> Dataset:
    """All rows of the file `data_path`, for evaluation: nothing is held out."""
    rows = read_file(Path(str(options.data_path)), options.answer_column or "answer")
    return _conversations(rows, options, str(options.data_path))


def _hold_out(train: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """Split off a random share of the training rows, the same for every run: (the rest, the share)."""
    if not 0 < share < 1:
        raise SVFError(f"validation_share must be between 0 and 1, not {share}")
    count = round(share * len(train))
    if not 0 < count < len(train):
        raise SVFError(
            f"validation_share={share} of {len(train)} training rows leaves one of the two splits empty: "
            "change it, or add a validation file"
        )
    halves = train.train_test_split(test_size=count, seed=SPLIT_SEED)
    return halves["train"], halves["test"]


def _conversations(rows: Dataset, options: TaskOptions, source: str) -> Dataset:
    check_has_columns(rows, [options.prompt_column], f"prompt_column: {source}")
    if options.answer_column:
        check_has_columns(rows, [options.answer_column], f"answer_column: {source}")
    for name, feature in rows.features.items():
        if isinstance(feature, Image | Audio | Video):
            raise SVFError(f"{source}: column {name!r} has images or sound, which are not supported: remove it")
    try:
        columns = {name: rows[name][:] for name in rows.column_names if name != options.prompt_column}
        if options.answer_column:
            columns["answer"] = rows[options.answer_column][:]
    except OverflowError as error:
        raise SVFError(f"{source}: a column has a time that Python does not know: write it as text") from error
    prompts = [
        _messages(value, options.system_prompt, f"{source}, row {number}, column {options.prompt_column!r}")
        for number, value in enumerate(rows[options.prompt_column])
    ]
    try:
        return Dataset.from_dict({**columns, "prompt": prompts})
    except OverflowError as error:  # an unsigned one of a parquet file
        raise SVFError(f"{source}: a column has an integer of more than 63 bits: write it as text") from error


def _messages(value: Any, system_prompt: str | None, where: str) -> list[dict[str, str]]:
    if isinstance(value, str):
        return chat(check_text(value, where), system_prompt)
    is_chat = isinstance(value, list) and all(
        isinstance(message, dict) and isinstance(message.get("content"), str) and "role" in message for message in value
    )
    if not is_chat or not value:
        raise SVFError(f"{where} must be text or a list of messages with role and content, not {str(value)[:80]!r}")
    messages = [{"role": message["role"], "content": message["content"]} for message in value]
    if system_prompt and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system_prompt})
    return messages


def rewards(options: TaskOptions) -> tuple[RewardSpec, ...]:
    raise SVFError("task columns has no default reward: give --reward, or name one in the recipe, such as exact_match")


READS = frozenset({"prompt_column", "answer_column", "validation_share"})
TASK = Task("columns", read, rewards, is_local=lambda options: options.data_path is not None, reads=READS)
