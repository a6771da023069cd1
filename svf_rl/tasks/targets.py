"""The targets that next-token training imitates, as text and as tokens."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from datasets import Dataset
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from svf_rl.errors import SVFError


def target_column(columns: Collection[str], where: str) -> str:
    """The column with the targets: `target`, or else `answer`. Raises `SVFError` if there is neither."""
    for name in ("target", "answer"):
        if name in columns:
            return name
    raise SVFError(f"{where}: objective next_token needs targets to imitate: give the rows a column 'target'")


def check_targets(rows: Dataset, where: str, place: Callable[[int], str]) -> None:
    """Raises `SVFError`, with the row as `place` names it, unless each of the rows `where` has a text to imitate."""
    column = target_column(rows.column_names, where)
    for number, target in enumerate(rows[column]):
        if not isinstance(target, str) or not target.strip():
            raise SVFError(
                f"{place(number)}: objective next_token needs a text in column {column!r}, not {target!r:.60}: "
                "give every row a column 'target' with a correct answer as the model should write it"
            )


def target_ids(tokenizer: PreTrainedTokenizerBase, prompt: Any, target: str, end: int) -> list[int]:
    """The tokens of `target` as a completion of `prompt`, and the token `end` that ends it (see [`end_of_turn`]). The
    prompt is text, or messages, of which the last may be the beginning of the assistant's turn."""
    beginning = prompt if isinstance(prompt, str) else prompt[-1]["content"] * (prompt[-1]["role"] == "assistant")
    before, both = tokenizer([beginning, beginning + target], add_special_tokens=False)["input_ids"]
    # tokenized as a continuation, where some tokenizers add no space before a word; unless a token spans the border
    whole = both[: len(before)] == before
    ids = both[len(before) :] if whole else tokenizer(target, add_special_tokens=False)["input_ids"]
    return [*ids, end]


def end_of_turn(
    tokenizer: PreTrainedTokenizerBase, eos_token_ids: Collection[int], template_arguments: Mapping[str, Any]
) -> int:
    """The token that ends an assistant's turn in the chat template, which may differ from the tokenizer's
    end-of-sequence token (as for Gemma). For a tokenizer without a template it is the latter."""
    mark, eos = "answer", tokenizer.eos_token_id
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": mark}]
    if tokenizer.chat_template is None and not template_arguments.get("chat_template"):
        return eos
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, **template_arguments)
    except TemplateError:
        return eos
    after = tokenizer(text.rpartition(mark)[2], add_special_tokens=False)["input_ids"]
    return next((token for token in after if token in eos_token_ids), eos)
