"""Every shell line, snippet and recipe of README and docs, run as it stands, or checked where it needs more than this
machine has. `docs_blocks.py` says how a block is marked, and `docs_commands.py` how its commands are run."""

import re
from collections.abc import Collection
from pathlib import Path

import pytest
import yaml
from docs_blocks import Block, blocks_of, commands_before, page_name, pages

PAGES = [page for page in pages() if blocks_of(page)]
LANGUAGES = ("bash", "python", "yaml", "text", "bibtex")


@pytest.fixture(params=PAGES, ids=page_name)
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_every_block_says_what_it_is(page: Path) -> None:
    for block in blocks_of(page):
        assert block.language in LANGUAGES, f"{block}: language {block.language!r}"
        if block.file is None and block.language in ("text", "bibtex"):
            assert block.needs is None, f"{block}: output needs nothing"


def test_recipes_hold_keys_that_exist(page: Path, recipe_keys: Collection[str]) -> None:
    for block in blocks_of(page):
        if block.language == "yaml" and (block.file is None or block.file.startswith("recipe")):
            unknown = set(yaml.safe_load(block.text)) - set(recipe_keys)
            assert not unknown, f"{block}: {unknown}"


@pytest.mark.vllm
def test_a_page_runs_from_top_to_bottom(page: Path, run_in, make_folder, request: pytest.FixtureRequest) -> None:
    if re.search(r"skill in .*code|'unit_tests'", page.read_text()):
        request.getfixturevalue("bubblewrap")
    folder = make_folder(page.stem)
    for command in commands_before(page):
        done = run_in(command, folder)
        assert done.returncode == 0, f"{page_name(page)}, {command}:\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    for block in blocks_of(page):
        _run(block, folder, run_in)


def _run(block: Block, folder: Path, run_in) -> None:
    if block.file is not None:
        path = folder / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        if path.suffix == ".py":
            compile(block.text, str(path), "exec")
        return
    if block.language == "bash":
        done = run_in(block.text, folder, check=block.needs is not None)
    elif block.language == "python":
        done = run_in(f"python - <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK\n", folder, check=block.needs is not None)
    else:
        return
    assert done.returncode == 0, f"{block}\n{block.text}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
