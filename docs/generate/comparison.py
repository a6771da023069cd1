"""The tables of a comparison, from the `raw.json` of it that is committed."""

import json
from pathlib import Path
from typing import Any

from svf_rl.reproduce.document import render_document
from svf_rl.reproduce.results import collect

COMPARISONS = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "comparisons"


def comparison(name: str) -> str:
    """The report of `svf-rl reproduce benchmarks/comparisons/NAME.json`, less its title and pictures."""
    return render_document(collect(read(name)), ()).partition("\n")[2].strip()


def read(name: str) -> dict[str, Any]:
    """What is committed of a comparison."""
    found: dict[str, Any] = json.loads((COMPARISONS / f"{name}.json").read_text(encoding="utf-8"))
    return found
