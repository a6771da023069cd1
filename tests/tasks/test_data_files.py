"""Cells and numbers of a user's own files arrive as they were written."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
from fakes import refusal

from svf_rl.errors import SVFError
from svf_rl.rewards import verify
from svf_rl.tasks.files import read_file

PIECES = (
    *",;\t\"' \n\r|\\", "\r\n", '""', '","', "007", "0.50", "1e5", "12345678901234567890123456789012345", "true", "NaN",
    "null", "NA", "-", "é", "漢字", "🙂", "\u2028", "\x85", "\ufeff", "word", "2024-01-02", "[1, 2]", '{"a": 1}',
)  # fmt: skip


def _cell(draw: random.Random) -> str:
    if draw.random() < 0.02:
        return "long " * draw.randrange(30_000)  # above the standard library's limit of a cell, and pyarrow's block
    return "".join(draw.choice(PIECES) for _ in range(draw.randrange(7)))


@pytest.mark.parametrize("seed", range(40))
def test_every_cell_is_what_was_written(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    suffix, delimiter, line = draw.choice((".csv", ".tsv")), ",", draw.choice(("\n", "\r\n"))
    if suffix == ".tsv" or draw.random() < 0.2:
        delimiter = "\t" if suffix == ".tsv" else ";"
    names = [f"column {place}" for place in range(draw.randrange(1 if delimiter == "," else 2, 6))]
    rows = [[_cell(draw) for _ in names] for _ in range(draw.choice((1, 3, 30, 300)))]
    path = tmp_path / f"rows{suffix}"
    with path.open("w", encoding=draw.choice(("utf-8", "utf-8-sig")), newline="") as file:
        quoting = draw.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
        if line == "\n":
            quoting = csv.QUOTE_ALL  # a writer that ends lines so leaves a lone \r unquoted
        csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=line).writerows([names, *rows])
    read = read_file(path)
    assert read.column_names == names
    assert [list(row.values()) for row in read] == rows


def test_line_breaks_in_a_file_of_several_megabytes(tmp_path: Path) -> None:
    rows = [
        [str(number), f'line one of {number}\nline "two", and\r\nthree', f"{number:07}"] for number in range(60_000)
    ]
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", "text", "answer"], *rows])
    assert (tmp_path / "rows.csv").stat().st_size > 3_000_000
    assert list(map(list, zip(*read_file(tmp_path / "rows.csv").to_dict().values(), strict=True))) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"q,a,q\n1,2,3\n", r"two columns 'q': rename one"),
        (b'q,a\n"x\ny",2\nthree\n', r"line 4: the row has 1 cells, and the first line names 2 columns"),
        (b"q,a\n1,2\n1,2,3\n", r"line 3: the row has 3 cells"),
        (b'q,a\n1,2\n"open,2\n3,4\n', r"line 3 is not valid CSV"),
        (b'q,a\n"x"y,2\n', r"line 2 is not valid CSV"),
        (b"q,a\n1,2\n1,caf\xe9\n", r"line 3 is not UTF-8: save it as UTF-8"),
        ("q,a\n1,2\n".encode("utf-16"), r"line 1 is not UTF-8"),
        (b"", r"is empty: its first line must name the columns"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(SVFError, match=message) as error:
        read_file(tmp_path / "rows.csv")
    assert "\n" not in str(error.value)


def test_blank_lines_and_a_table_of_one_column(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('q\nfirst\n\n""\nsecond; third\n\n')
    assert read_file(tmp_path / "rows.csv")["q"][:] == ["first", "", "second; third"]


def _lines(tmp_path: Path, *values: str, references: str | None = None) -> list[Any]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"q": "x", "answer": {value}}}\n' for value in values))
    (tmp_path / "rows.json").write_text("[" + ",".join(path.read_text().splitlines()) + "]")
    read = read_file(path, references)["answer"][:]
    assert read_file(tmp_path / "rows.json", references)["answer"][:] == read
    return read


def test_numbers_that_64_bits_hold_stay_numbers(tmp_path: Path) -> None:
    assert _lines(tmp_path, "7", "null", "-9223372036854775808") == [7, None, -(2**63)]
    assert _lines(tmp_path, "0.50", "7", "1e5") == [0.5, 7.0, 1e5]


@pytest.mark.parametrize(
    "value", [f"1{30 * '0'}", "3.14159265358979323846264338327950288", "1e400", "1e-99999999999999999999"]
)
def test_others_are_text_as_they_are_written(tmp_path: Path, value: str) -> None:
    assert _lines(tmp_path, value, "null", "7") == [value, None, "7"]


def test_references_are_written_as_in_the_file(tmp_path: Path) -> None:
    assert _lines(tmp_path, "7", "8", references="answer") == [7, 8]
    assert _lines(tmp_path, "7.5", "8.0", references="answer") == [7.5, 8.0]
    assert _lines(tmp_path, "7", "7.5", references="answer") == ["7", "7.5"]
    assert _lines(tmp_path, "0.50", "1.0", references="answer") == ["0.50", "1.0"]


def test_a_huge_number_within_an_object_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"q": "x", "answer": {"inputs": [10**30]}}) + "\n")
    assert "rows.jsonl" in refusal(read_file, tmp_path / "rows.jsonl")


def test_a_right_answer_to_a_long_number_is_right(tmp_path: Path) -> None:
    number = "123456789012345678901234567890"
    (tmp_path / "rows.csv").write_text(f"q,answer\nx,{number}\n")
    for reference in (_lines(tmp_path, number)[0], read_file(tmp_path / "rows.csv")["answer"][0]):
        assert verify("exact_match", number, reference)
        assert verify("numeric", f"#### {number}", reference)
