"""Markdown in which the text of runs, models and users stays text."""

import re
from collections.abc import Sequence

from svf_rl.metrics.statistics import Interval
from svf_rl.report.samples import Sample

_LONGEST_TEXT = 800  # characters of a prompt or of a completion
_LONGEST_NOTE = 160
_VERDICTS = {True: "right", False: "wrong", None: "not scorable"}


def table(headings: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table; the cells are taken as plain text."""
    lines = [[escaped(cell) for cell in line] for line in (headings, *rows)]
    lines.insert(1, ["---"] * len(headings))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def picture(file: str, alternative: str, caption: str = "") -> str:
    """A picture beside the Markdown file, with what a reader must know of it below."""
    return f"![{escaped(alternative)}]({file})" + (f"\n\n{caption}" if caption else "")


def estimate(value: float, interval: Interval) -> str:
    """Such as `0.695 (0.654 to 0.734)`."""
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def sample_text(sample: Sample) -> str:
    """A completion: its verdict, its notes, its prompt, itself."""
    notes = [f"{escaped(name)}: {escaped(_cut(note, _LONGEST_NOTE))}" for name, note in sample.notes.items()]
    first = "; ".join([f"**{_VERDICTS[sample.correct]}**", *notes])
    return f"{first}\n\n{fenced(sample.prompt)}\n\n{fenced(sample.completion)}"


def escaped(text: object) -> str:
    """Text in which neither Markdown nor HTML finds anything of its own, on one line."""
    line = " ".join(_visible(str(text)).split())
    return re.sub(r"([\\`*{}\[\]<>#|~]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", line.replace("&", "&amp;"))


def fenced(text: str) -> str:
    """Text as it is, in a block that it cannot end: long text is cut, and its length given."""
    shown = _visible(_cut(text, _LONGEST_TEXT))
    fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", shown)), default=0))
    return f"{fence}text\n{shown}\n{fence}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most} more characters)"


def _visible(text: str) -> str:
    """What a terminal or UTF-8 would not take as text is written as an escape."""
    return "".join(c if c.isprintable() or c in "\n\t " else c.encode("unicode_escape").decode() for c in text)
