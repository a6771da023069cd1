"""The fenced blocks of the documentation, and what is to be done with each of them.

An HTML comment on the lines before a block says what it is:

    <!-- needs: gpu -->       its commands are checked and not run (also: cluster, server, hub, root, time)
    <!-- file: NAME -->       it is written to the file NAME in the folder of its page

and anywhere in a page

    <!-- before: COMMAND -->  runs COMMAND before the page's first block

Without a comment a shell or Python block is run, and a YAML block must hold keys of recipes alone. Blocks of language
`text` show what is printed; there are no others.
"""

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
NEEDS = ("gpu", "cluster", "server", "hub", "root", "time")
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```\s*$", re.MULTILINE | re.DOTALL
)
_COMMENT = re.compile(r"<!-- *(\w+): *(.+?) *-->")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language and text, and what the comments before it say."""

    page: str
    line: int
    language: str
    text: str
    needs: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """README, CONTRIBUTING and every page of the site, in the order in which they are tested."""
    names = ["README.md", "CONTRIBUTING.md", "slurm/README.md"]
    return [*(REPOSITORY / name for name in names), *sorted((REPOSITORY / "docs").rglob("*.md"))]


def page_name(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def blocks_of(path: Path) -> list[Block]:
    """The blocks of a page, in order. Raises `ValueError` for a comment that says nothing known."""
    text = path.read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(text):
        line = text.count("\n", 0, fence.start()) + 1
        marks = dict(_COMMENT.findall(_lines_before(text, fence.start())))
        if marks.get("needs", "gpu") not in NEEDS:
            raise ValueError(f"{page_name(path)}:{line}: needs is one of {', '.join(NEEDS)}, not {marks['needs']!r}")
        indent = fence["indent"]
        lines = [row.removeprefix(indent) for row in fence["text"].splitlines()]
        found.append(
            Block(
                page_name(path), line, fence["language"], "\n".join(lines) + "\n", marks.get("needs"), marks.get("file")
            )
        )
    return found


def commands_before(path: Path) -> list[str]:
    """What the page's `before` comments run."""
    marks = _COMMENT.findall(path.read_text(encoding="utf-8"))
    return [command for name, command in marks if name == "before"]


def _lines_before(text: str, end: int) -> str:
    """The comments directly before a position."""
    lines = text[:end].splitlines()
    first = len(lines)
    while first and (not lines[first - 1].strip() or lines[first - 1].strip().startswith("<!--")):
        first -= 1
    return "\n".join(lines[first:])
