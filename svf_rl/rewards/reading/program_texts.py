"""The texts of a completion that may be its program; which of them is, `sandbox/boxed/choose_program.py` decides."""

import re
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from svf_rl.rewards.reading.final_answer import visible_text

_FENCE = re.compile(r"^(?P<indent>[ \t]*+)(?P<marks>`{3,}+|~{3,}+)(?P<info>[^\n`]*+)$", re.M)
_LANGUAGE = re.compile(r"[\s{.]*+([\w+#.-]*+)")
_PYTHON = re.compile(r"(?:python|py)[\d.]*", re.I)
_QUOTED = re.compile(r"""'[^'\n]*+'|"[^"\n]*+\"""")
_HIDDEN = "\udbff"  # no tokenizer writes it


class _Block(NamedTuple):
    language: str
    code: str
    indent: str


def find_candidates(completion: str, prompt: str = "") -> list[str]:
    """
    The texts that may be the program, best first: all of the completion (raw code), blocks labelled as Python, blocks
    without a label, other blocks. What stands before the first fence comes before the blocks only where that fence ends
    a block that a prefilled turn began, and what the model thought in `<think>` is no candidate.

    Args:
        completion (`str`): raw code; code in fenced blocks; code that continues a prefilled turn up to a closing
            fence; or, with `prompt`, the body of the function that the prompt begins.
        prompt (`str`, *optional*): the beginning of the program. Its imports are put before a complete program too.
    """
    visible = _visible(completion)
    fences = list(_FENCE.finditer(visible))
    before = [visible[: fences[0].start()]] if fences else []
    codes = _ranked(_blocks(visible, fences))
    if fences and _begins_inside(fences):
        codes = [*before, *_ranked(_blocks(visible, fences[1:])), *codes]
    texts = list(dict.fromkeys(text for text in [completion, visible, *codes, *before] if text.strip())) or [completion]
    if not prompt:
        return texts
    preamble = re.split(r"^(?:def|class|async def|@)", prompt, maxsplit=1, flags=re.M)[0]
    return [preamble + text for text in texts] + [prompt + text for text in texts]


def _visible(completion: str) -> str:
    """What counts of a completion. What a closed block has between quotes, such as `"</think>"`, ends nothing."""
    parts, at = [], 0
    for opened, end in _pairs(list(_FENCE.finditer(completion))):
        if end is not None and _closes(end, opened):
            code = completion[opened.end() : end.start()]
            parts += [completion[at : opened.end()], _QUOTED.sub(lambda text: text[0].replace("<", _HIDDEN), code)]
            at = end.start()
    return visible_text("".join([*parts, completion[at:]])).replace(_HIDDEN, "<")


def _ranked(blocks: list[_Block]) -> list[str]:
    """The codes of blocks, those in Python first; of each, the forms that its indentation may mean."""
    ranked = sorted(blocks, key=lambda block: 0 if _PYTHON.fullmatch(block.language) else 1 + bool(block.language))
    return [form for block in ranked for form in _forms(block)]


def _forms(block: _Block) -> tuple[str, str, str]:
    """The code of a block without the indentation of its fence, without its own, and as it is."""
    lines, indent = block.code.splitlines(keepends=True), block.indent
    moved = "".join(line.removeprefix(indent) if line.startswith(indent) else line.lstrip(" \t") for line in lines)
    return moved, textwrap.dedent(block.code), block.code


def _blocks(text: str, fences: list[re.Match[str]]) -> list[_Block]:
    """The blocks that the fences make, the first of which opens one."""
    blocks: list[_Block] = []
    for opened, end in _pairs(fences):
        language = _LANGUAGE.match(opened["info"])
        code = text[opened.end() + 1 : end.start() if end else len(text)]
        blocks.append(_Block(language[1] if language else "", code, opened["indent"]))
    return blocks


def _begins_inside(fences: list[re.Match[str]]) -> bool:
    """Whether the fences make pairs only if the first one, which has no label, closes a block that a prefilled turn
    began: a label stands where a fence would close, or one fence is left over."""
    if fences[0]["info"].strip():
        return False
    torn = (opened for opened, end in _pairs(fences) if end is None or not _closes(end, opened))
    first = next(torn, None)
    return first is not None and not first["info"].strip()


def _pairs(fences: list[re.Match[str]]) -> Iterator[tuple[re.Match[str], re.Match[str] | None]]:
    """Each fence that opens a block, and the one that ends it: `None` where the text is cut off before."""
    opened = None
    for fence in fences:
        if opened is None:
            opened = fence
        elif _closes(fence, opened) or _opens_anew(fence, opened):
            yield opened, fence
            opened = None if _closes(fence, opened) else fence
    if opened is not None:
        yield opened, None


def _closes(fence: re.Match[str], opened: re.Match[str]) -> bool:
    return _is_level(fence, opened) and fence["marks"].startswith(opened["marks"]) and not fence["info"].strip()


def _opens_anew(fence: re.Match[str], opened: re.Match[str]) -> bool:
    """Whether a fence with a label stands where a block of the same fences should have been closed before."""
    return _is_level(fence, opened) and fence["marks"] == opened["marks"] and bool(fence["info"].strip())


def _is_level(fence: re.Match[str], opened: re.Match[str]) -> bool:
    """Whether a fence stands no deeper than one that ends the block (CommonMark, 4.5), as one in a docstring does."""
    return len(fence["indent"].expandtabs(4)) < len(opened["indent"].expandtabs(4)) + 4
