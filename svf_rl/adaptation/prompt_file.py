"""A user's own prompts from a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from svf_rl.errors import SVFError, one_line
from svf_rl.evaluation.grading import Ungraded
from svf_rl.evaluation.items import TaskItems
from svf_rl.generation import Sampling
from svf_rl.generation.prompts import Conversation, encode_prompts, render_prompt
from svf_rl.tasks import TaskOptions
from svf_rl.tasks.columns import read_rows
from svf_rl.tasks.files import SUFFIXES
from svf_rl.tasks.task import chat, limit_rows

PROMPTS = "prompts"


def ungraded_items(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    sampling: Sampling,
    **template_arguments: Any,
) -> TaskItems:
    """Conversations as items whose answers get no verdict."""
    return TaskItems(
        name=PROMPTS,
        rows=[{"prompt": conversation} for conversation in conversations],
        prompts=[render_prompt(tokenizer, conversation, **template_arguments) for conversation in conversations],
        prompt_ids=encode_prompts(tokenizer, conversations, **template_arguments),
        grader=Ungraded(),
        sampling=sampling,
        metric="accuracy",
    )


def read_prompts(path: Path, options: TaskOptions, limit: int | None = None) -> list[list[dict[str, str]]]:
    """
    The conversations of a file: rows with `prompt_column` (text, or messages with role and content), or the lines of a
    text file that are not blank.

    Raises:
        SVFError: no such file, another kind of file, or no prompts in it.
    """
    if path.name.endswith(SUFFIXES):
        own = TaskOptions(data_path=str(path), prompt_column=options.prompt_column, system_prompt=options.system_prompt)
        rows = read_rows(own)
    else:
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise SVFError(f"prompts {path} cannot be read as text: {one_line(error)}") from error
        prompts = [chat(line, options.system_prompt) for line in lines if line.strip()]
        if not prompts:
            raise SVFError(f"prompts {path} holds no line with text: write a prompt a line")
        rows = Dataset.from_dict({"prompt": prompts})
    return limit_rows(PROMPTS, rows, limit)["prompt"][:]
