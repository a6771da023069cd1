"""The hook of mkdocs.yml: fills in the generated parts of pages.

A line `<!-- generated: NAME ARGUMENTS -->` of a page is replaced by what the function of that name returns. Nothing
generated is committed, so that it cannot become wrong.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(REPOSITORY), str(Path(__file__).parent.parent)]

from generate import commands, comparison, measurements, recipe_keys  # noqa: E402

_LINE = re.compile(r"^<!-- generated: (\w+) ?(.*?) -->$", re.MULTILINE)

_FILE = re.compile(r"^<!-- file: (\S+) -->\n```(\w+)$", re.MULTILINE)


def changelog() -> str:
    """CHANGELOG.md as it stands, less its title."""
    return (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8").partition("\n")[2]


GENERATED: dict[str, Callable[..., str]] = {
    "changelog": changelog,
    "command_help": commands.command_help,
    "comparison": comparison.comparison,
    "measurement": measurements.measurement,
    "recipe_keys": recipe_keys.table,
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs calls this with the text of each page."""
    named = _FILE.sub(r'```\2 title="\1"', markdown)  # the name that the tests give a block stands above it
    return _LINE.sub(lambda line: GENERATED[line[1]](*line[2].split()), named)


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings write [`name`] for what they refer to; the brackets are of no use where nothing is linked."""
    return re.sub(r"\[(<code[^>]*>[^<]*</code>)\](?!\()", r"\1", html)
