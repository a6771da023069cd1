"""Sections of the report of a comparison, from the `raw.json` that is committed of it."""

import json
import re
from functools import cache
from pathlib import Path

from svf_rl.reproduce.document import render_document
from svf_rl.reproduce.methods import slug
from svf_rl.reproduce.results import collect

COMPARISONS = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "comparisons"


def comparison(name: str, section: str) -> str:
    """
    A section of `report.md`, without its heading and pictures.

    Args:
        name (`str`): a file in `benchmarks/comparisons/` without its ending.
        section (`str`): its heading, as in `what-moved`.
    """
    return sections(name)[section]


@cache
def sections(name: str) -> dict[str, str]:
    """All of them, by heading."""
    results = collect(json.loads((COMPARISONS / f"{name}.json").read_text(encoding="utf-8")))
    _, *parts = re.split(r"^## (.+)$", render_document(results, ()), flags=re.MULTILINE)
    return {slug(heading): text.strip() for heading, text in zip(parts[::2], parts[1::2], strict=True)}
