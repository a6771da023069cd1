"""Markdown from templates, in which the text of runs, models and users stays text."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_LONGEST_TEXT = 800  # characters of a prompt or of a completion


def render(template: str, **values: Any) -> str:
    """
    A text from the template of that path in the package, such as `runs/model_card.md.jinja`. Lines that hold nothing
    but a statement leave no line behind; a block that may be missing ends with its own blank line.
    """
    return _ENVIRONMENT.get_template(template).render(values).rstrip("\n") + "\n"


def markdown_table(headings: Sequence[object], rows: Sequence[Sequence[object]], rest: str = "---") -> str:
    """A table, empty without rows. The cells are taken as plain text; `rest` aligns all columns but the first."""
    if not rows:
        return ""
    lines = [[escape_markdown(cell) for cell in line] for line in (headings, *rows)]
    lines.insert(1, ["---", *[rest] * (len(headings) - 1)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def escape_markdown(text: object) -> str:
    """Text in which neither Markdown nor HTML finds anything of its own, on one line."""
    line = " ".join(_visible(str(text)).split())
    return re.sub(r"([\\`*{}\[\]<>#|~]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", line.replace("&", "&amp;"))


def fence(text: str) -> str:
    """Text as it is, in a block that it cannot end: long text is cut, and its length given."""
    shown = _visible(shorten(text, _LONGEST_TEXT))
    fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", shown)), default=0))
    return f"{fence}text\n{shown}\n{fence}"


def shorten(text: str, most: int) -> str:
    """The first `most` characters, and how many were left out."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most} more characters)"


def code(names: Iterable[object]) -> str:
    """Names as code, with commas between them."""
    return ", ".join(f"`{name}`" for name in names)


def _visible(text: str) -> str:
    """What a terminal or UTF-8 would not take as text is written as an escape sequence."""
    return "".join(c if c.isprintable() or c in "\n\t " else c.encode("unicode_escape").decode() for c in text)


_ENVIRONMENT = Environment(
    loader=PackageLoader("svf_rl", "."),
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=StrictUndefined,
)
_ENVIRONMENT.filters |= {"code": code, "escape_markdown": escape_markdown, "fence": fence, "shorten": shorten}
_ENVIRONMENT.globals |= {"markdown_table": markdown_table}
