"""The run that all others are compared with."""

from pathlib import Path
from typing import Any

import pytest
from launched import WHOLE, train


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Completions of one process with a live vLLM, and what it made of them."""
    folder = tmp_path_factory.mktemp("recorded")
    completions = folder / "completions.json"
    return completions, train("cpu", "record", completions, folder / "out.json", *WHOLE)
