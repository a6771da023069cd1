"""CSV as it was written: every cell is text, and a value may hold line breaks, quotes and delimiters."""

import codecs
import csv
import io
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from svf_rl.errors import SVFError

_OTHER_DELIMITERS = (";", "\t")


def read_csv(path: Path) -> dict[str, list[str]]:
    """
    The columns of a file in UTF-8, whose first line names them. A `.tsv` is separated by tabs; a `.csv` by commas, or
    where no comma is in its first line, by semicolons or tabs. Blank lines are passed over.

    Raises:
        SVFError: a column that is named twice, a row of another length, an open quote, not UTF-8; the line is named.
    """
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        file = io.StringIO(data.decode(), newline="")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SVFError(f"data file {path}, line {line} is not UTF-8: save it as UTF-8") from error
    delimiter = "\t" if path.suffix == ".tsv" else _find_delimiter(file.readline())
    file.seek(0)
    with _cells_of_any_length():
        rows = _numbered(file, delimiter, path)
        _, names = next(rows, (0, []))
        columns: list[list[str]] = [[] for _ in names]
        for line, row in rows:
            if len(row) != len(names):
                raise SVFError(
                    f"data file {path}, line {line}: the row has {len(row)} cells, and the first line names "
                    f"{len(names)} columns: quote a cell that holds {delimiter!r}, or correct the row"
                )
            for column, cell in zip(columns, row, strict=True):
                column.append(cell)
    if not names:
        raise SVFError(f"data file {path} is empty: its first line must name the columns")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SVFError(f"data file {path} has two columns {twice!r}: rename one")
    return dict(zip(names, columns, strict=True))


def _numbered(file: Iterable[str], delimiter: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows, each with the line of the file in which it begins."""
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise SVFError(
                f"data file {path}, line {line} is not valid CSV ({error}): close the quotes of that row, and double "
                "those within a cell"
            ) from error
        if row is None:
            return
        if row:
            yield line, row


def _find_delimiter(first: str) -> str:
    return "," if "," in first else next((other for other in _OTHER_DELIMITERS if other in first), ",")


@contextmanager
def _cells_of_any_length() -> Iterator[None]:
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
