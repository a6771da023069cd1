"""A held-out text, cut into windows whose tokens are scored: what a model says of it after another training is what it
has forgotten."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from svf_rl.errors import SVFError

Window = tuple[list[int], list[int]]
"""Tokens that are only read, and those after them that are scored."""


def find_text(name: str, folder: Path) -> Path:
    """
    The file of a text: a path from `folder`, or `package:path/inside.txt` for a file of an installed Python package,
    which is not imported.

    Raises:
        SVFError: there is no such package, or no such file.
    """
    package, colon, inside = name.partition(":")
    if not colon or not package.isidentifier():
        path = folder / Path(name).expanduser()
    else:
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            raise SVFError(f"text {name}: there is no package {package} here: install it, or give a path")
        path = Path(next(iter(found.submodule_search_locations))) / inside
    if not path.is_file():
        raise SVFError(f"text {name}: there is no file {path}")
    return path.resolve()


def read_windows(
    path: Path, tokenizer: PreTrainedTokenizerBase, length: int, limit: int | None, positions: int | None
) -> list[Window]:
    """
    The first `limit` windows, or all, of a text of UTF-8: [`cut_windows`] of its tokens.

    Args:
        length (`int`): tokens of a window.
        positions (`int`, *optional*): tokens that the model takes; one of them is left free, which vLLM asks for.

    Raises:
        SVFError: the file cannot be read, a window does not fit into the model, or the text has not two tokens.
    """
    if positions is not None and length >= positions:
        raise SVFError(f"a window of {length} tokens does not fit: the model takes {positions}, one of them left free")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SVFError(f"text {path} cannot be read as UTF-8 ({error}): give another file") from error
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    windows = cut_windows(ids, start_ids(tokenizer), length)
    if not windows:
        raise SVFError(f"text {path} has fewer than two tokens: there is nothing to score")
    return windows[:limit]


def start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before every text: the token that begins a sequence, or nothing."""
    plain, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    starts = (place for place in range(len(whole)) if whole[place : place + len(plain)] == plain)
    return list(whole[: next(starts, 0)])


def cut_windows(ids: Sequence[int], start: Sequence[int], length: int) -> list[Window]:
    """
    The tokens in windows of `length`, one after another without overlap; the last one may be shorter. Each begins with
    `start`, which is not scored; where there is none, the first token of the window is not. What leaves no token to
    score is dropped.

    Raises:
        SVFError: a window has no room for a token to score.
    """
    step, read = length - len(start), 0 if start else 1
    if step <= read:
        raise SVFError(f"a window of {length} tokens has none to score: give at least {len(start) + read + 1}")
    parts = (list(ids[place : place + step]) for place in range(0, len(ids), step))
    return [([*start, *part[:read]], part[read:]) for part in parts if len(part) > read]
