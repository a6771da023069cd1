"""The site builds strictly, and says what is there: keys, commands, measurements, links."""

import re
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path

import pytest
from docs_blocks import REPOSITORY, blocks_of, page_name, pages
from generate.measurements import RESULTS

from svf_rl.reproduce.comparison import Comparison
from svf_rl.reproduce.probes import Probe

TEXTS = [path for path in REPOSITORY.rglob("*.md") if not {".venv", "site"} & set(path.relative_to(REPOSITORY).parts)]


@pytest.fixture(scope="module")
def site(run_in, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    done = run_in(f"NO_MKDOCS_2_WARNING=1 python -m mkdocs build --strict --quiet --site-dir {folder}", REPOSITORY)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def test_the_site_builds_strictly(site: Path, recipe_keys: Collection[str]) -> None:
    assert (site / "index.html").is_file()
    text = (site / "reference/recipe-keys.html").read_text()
    assert not [key for key in recipe_keys if f"<code>{key}</code>" not in text]


def test_nothing_generated_is_left_out(site: Path) -> None:
    assert not [page for page in site.rglob("*.html") if "<!-- generated:" in page.read_text()]


def test_links_within_the_site_lead_somewhere(site: Path) -> None:
    """Also those that mkdocs does not check: of generated text and of docstrings."""
    anchors = {page: set(re.findall(r'\bid="([^"]+)"', page.read_text())) for page in site.rglob("*.html")}
    broken = []
    for page in anchors:
        if page.name == "404.html":
            continue
        for link in re.findall(r'(?:href|src)="([^"]+)"', page.read_text()):
            if re.match(r"\w+:|//", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists() or (anchor and target in anchors and anchor not in anchors[target]):
                broken.append(f"{page.relative_to(site)}: {link}")
    assert not broken


def test_links_of_markdown_files_lead_somewhere() -> None:
    """Of those that are read in the repository: README, CONTRIBUTING, a README in each room, the pages as files."""
    broken = []
    for path in TEXTS:
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"\w+:", link):
                continue
            name, _, anchor = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            if not target.exists() or (anchor and target.suffix == ".md" and anchor not in _anchors(target)):
                broken.append(f"{path.relative_to(REPOSITORY)}: {link}")
    assert not broken


def test_readme_is_short_and_shows_a_result() -> None:
    text = (REPOSITORY / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    assert re.search(r"!\[[^\]]+\]\(docs/images/\S+\.(png|svg)\)", text)


def test_keys_that_pages_name_exist(recipe_keys: Collection[str]) -> None:
    """In tables of keys, and in inline code such as `beta: 0.1`."""
    elsewhere = {"use_cpu", "error", "failed", "note", "allow_unsandboxed", "tests"}
    # accelerate's, printed, two rewards' options
    unknown = []
    for path in pages():
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        named = set(re.findall(r"`([a-z][a-z0-9_]+): [^`]*`", text))
        for table in re.findall(r"^\| key \|.*\n\|[-:| ]+\|\n((?:\|.*\n)+)", text, re.MULTILINE):
            for row in table.splitlines():
                named |= set(re.findall(r"`([a-z0-9_]+)`", row.split("|")[1]))
        unknown += [f"{page_name(path)}: {key}" for key in named - set(recipe_keys) - elsewhere]
    assert not unknown


def test_the_keys_of_a_comparison_and_of_its_probes_are_documented() -> None:
    page = (REPOSITORY / "docs/guides/reproduce.md").read_text()
    table = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert table == {field.name for field in fields(Comparison)} - {"path"}  # which is the file itself
    assert not [field.name for field in fields(Probe) if f"`{field.name}`" not in page]


def test_every_measurement_is_shown() -> None:
    text = "".join(page.read_text() for page in (REPOSITORY / "docs").rglob("*.md"))
    assert not [
        path.stem for path in RESULTS.glob("*.json") if f"<!-- generated: measurement {path.stem} -->" not in text
    ]


def test_every_room_has_a_short_readme_and_stands_in_contributing() -> None:
    contributing = (REPOSITORY / "CONTRIBUTING.md").read_text()
    for room in (REPOSITORY / "svf_rl").iterdir():
        if room.is_dir() and (room / "__init__.py").is_file():
            assert f"`{room.name}/`" in contributing, room.name
            assert len((room / "README.md").read_text().splitlines()) <= 80, room.name


def test_every_block_with_keys_of_a_recipe_is_found() -> None:
    """Or the tests of recipes in pages would pass for want of any."""
    assert sum(block.language == "yaml" for path in pages() for block in blocks_of(path)) >= 6


def _anchors(path: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.replace("`", "").lower()).strip().replace(" ", "-") for head in heads}
