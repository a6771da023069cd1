"""The rows of a run, checked before any weight is loaded: columns, answers, and prompts as the model will read them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from svf_rl.episodes.environments import check_environment_names
from svf_rl.errors import SVFError
from svf_rl.generation.prompts import encode_prompts
from svf_rl.rewards import Reward, required_columns
from svf_rl.rewards.reward import TRAINER_ARGUMENTS
from svf_rl.rewards.verified import check_answers
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.settings.episodes import tools_of
from svf_rl.settings.recipe import DataArguments
from svf_rl.tasks import Splits, find_task
from svf_rl.tasks.targets import check_targets

# Columns that TRL does not pass to rewards: they get `prompts` and the model's `completions` instead.
_HIDDEN_COLUMNS = {"prompt", "completion"}
# What rewards are given beside the columns, under names that a column would have to share.
_TAKEN = TRAINER_ARGUMENTS | {"self"}
_IMAGES = {"image", "images"}


def load_rows(
    data: DataArguments,
    training: SVFReinforceConfig,
    rewards: Sequence[Reward],
    tokenizer: PreTrainedTokenizerBase | None,
    positions: int | None,
    tools: Sequence[Callable[..., Any]] | None = None,
) -> tuple[Splits, list[str]]:
    """
    The rows of each split that the run uses, and a line for each split of which some were left out.

    Args:
        data, training: of the recipe.
        rewards (`Sequence[Reward]`): those that grade the rows.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): of the model; without one, prompts are not checked.
        positions (`int`, *optional*): as many tokens as the model can read; `None` where that is not limited.
        tools (`Sequence[Callable]`, *optional*): those that a prompt lists.

    Raises:
        SVFError: no rows to train on, a column missing or with a name that is taken, an answer that a reward cannot
            use, a prompt that the chat template refuses or that leaves no room for an answer; with the row.
    """
    splits = find_task(data.task).load(data)
    _check_rows(data, splits, rewards, training.objective)
    notes: list[str] = []
    if tokenizer is not None:
        for split, rows in splits.items():
            if rows is not None:
                splits[split] = _that_fit(split, rows, data, training, tokenizer, positions, notes, tools)
    return splits, notes


def check_columns(rewards: Sequence[Reward], columns: Collection[str]) -> None:
    """Raises `SVFError` when a reward needs a column that the rows do not have, or the name of one is taken."""
    for name in sorted(_IMAGES & set(columns)):
        raise SVFError(f"column {name!r} of the data: images are not supported: remove the column")
    for name in sorted(_TAKEN & set(columns)):
        raise SVFError(f"column {name!r} of the data has the name of what rewards are given by the trainer: rename it")
    offered = set(columns) - _HIDDEN_COLUMNS
    for reward in rewards:
        for missing in sorted(required_columns(reward) - offered):
            raise SVFError(
                f"reward {reward.__name__!r} needs the column {missing!r}; the data has: "
                f"{', '.join(sorted(offered)) or 'no column but the prompt'}"
            )


def _check_rows(data: DataArguments, splits: Splits, rewards: Sequence[Reward], objective: str) -> None:
    """Raises `SVFError` if there are no training rows, a column is missing, or a reward cannot use an answer."""
    for split in ("train", "validation"):
        if splits[split] is None:
            raise untrainable(data.task, split)
    for split, rows in splits.items():
        if rows is None:
            continue
        # a rollout function may give rewards more than the rows have
        check_columns(rewards if data.rollout_func is None else (), rows.column_names)
        if isinstance(data.environment, Mapping):
            check_environment_names(f"{data.task} ({split})", rows, data.environment, "environment")
        columns = {name: rows[name][:] for name in rows.column_names if name not in _HIDDEN_COLUMNS}
        for reward in rewards:
            check_answers(reward, columns, _place(data, split, rows), data.answer_column)
    if objective == "next_token":
        assert splits["train"] is not None
        check_targets(splits["train"], f"{data.task} (train)", _place(data, "train", splits["train"]))


def untrainable(task: str, split: str) -> SVFError:
    """The error for a task without such rows."""
    return SVFError(f"task {task} has no {split} rows, it is only for evaluation: train on another one")


def _place(data: DataArguments, split: str, rows: Dataset) -> Callable[[int], str]:
    """Where a row stands, for messages: that of the user's file, of which the split may be a shuffled part."""
    indices = rows._indices  # the rows of the file that a shuffled part has; `None` where it is the file as it is

    def place(row: int) -> str:
        if indices is None:
            return f"{data.task} ({split}), row {row}"
        return f"{data.data_path or data.dataset_name or data.task}, row {indices.column(0)[row].as_py()}"

    return place


def _that_fit(
    split: str,
    rows: Dataset,
    data: DataArguments,
    training: SVFReinforceConfig,
    tokenizer: PreTrainedTokenizerBase,
    positions: int | None,
    notes: list[str],
    tools: Sequence[Callable[..., Any]] | None,
) -> Dataset:
    """The rows whose prompts leave room for an answer: all, or with `drop_long_prompts` those that do."""
    place = _place(data, split, rows)
    template = tools_of(training.chat_template_kwargs or {}, tools)
    lengths = _prompt_lengths(rows["prompt"][:], tokenizer, template, place)
    limits = {"vllm_max_model_length": training.vllm_max_model_length if training.use_vllm else None}
    limits["the model's positions"] = positions
    known = {name: value for name, value in limits.items() if value is not None}
    if not known:
        return rows
    name, limit = min(known.items(), key=lambda item: item[1])
    # vLLM cuts an answer short where the positions end; transformers would go on
    room = 1 if training.use_vllm else training.max_completion_length
    fit = [row for row, length in enumerate(lengths) if length + room <= limit]
    left_out = len(rows) - len(fit)
    if not left_out:
        return rows
    longest = max(range(len(rows)), key=lengths.__getitem__)
    beside = "an answer" if training.use_vllm else f"max_completion_length ({room})"
    detail = f"{left_out} of {len(rows)} prompts leave no room for {beside} within {name} ({limit})"
    if not data.drop_long_prompts:
        raise SVFError(
            f"{place(longest)}: a prompt of {lengths[longest]} tokens; {detail}: drop_long_prompts: true leaves such "
            "rows out"
        )
    if not fit:
        raise SVFError(f"no {split} rows are left: {detail}; use shorter prompts or another model")
    notes.append(f"{split}: {detail}: they are left out")
    return rows.select(fit)


def _prompt_lengths(
    prompts: Sequence[Any], tokenizer: PreTrainedTokenizerBase, template: dict[str, Any], place: Callable[[int], str]
) -> list[int]:
    """How many tokens each prompt has. Raises `SVFError`, with the row, for one that the template refuses."""
    try:
        return [len(ids) for ids in encode_prompts(tokenizer, prompts, **template)]
    except SVFError as error:
        for row, prompt in enumerate(prompts):
            try:
                encode_prompts(tokenizer, [prompt], **template)
            except SVFError as own:
                raise SVFError(f"{place(row)}, column 'prompt': {own}") from own
        raise error
