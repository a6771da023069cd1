"""JSON from the disk: what it holds, or one line that names the file and says what to do."""

import gzip
from pathlib import Path

import pytest

from svf_rl.errors import SVFError
from svf_rl.storage.json_files import normalize_json, read_json, read_json_lines


def test_an_object_comes_back(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"kind": "数", "runs": {}}', encoding="utf-8")
    assert read_json(tmp_path / "a.json", "", {"kind": str, "runs": dict}) == {"kind": "数", "runs": {}}


@pytest.mark.parametrize("content", [b'{"kind"', b"", b"[1]", b"\xff\xfe\x00", b'{"runs": {}}', b'{"kind": 1}'])
def test_anything_else_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(SVFError, match=r"a\.json is damaged \(.*\): remove it$") as error:
        read_json(tmp_path / "a.json", "remove it", {"kind": str})
    assert "\n" not in str(error.value)


def test_a_missing_file_is_one_line_or_an_empty_object(tmp_path: Path) -> None:
    with pytest.raises(SVFError, match=r"cannot read .*a\.json: No such file or directory; remove it"):
        read_json(tmp_path / "a.json", "remove it")
    assert read_json(tmp_path / "a.json", "remove it", {"kind": str}, missing_ok=True) == {}


def number(line: dict[str, int]) -> int:
    return int(line["n"])


def test_lines_come_back_less_a_torn_last_one(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    for torn in (b"", b'{"n', b'{"n": 3}'):
        file.write_bytes(b'{"n": 1}\n\n{"n": 2}\n' + torn)
        assert read_json_lines(file, number) == [1, 2]
    assert read_json_lines(file, number, torn_ok=False) == [1, 2, 3]
    assert read_json_lines(tmp_path / "missing.jsonl", number) == []


@pytest.mark.parametrize("line", ["{broken", "[1]", "{}", '{"n": "?"}', '{"n": 1e999}', "null"])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"n": 1}}\n{line}\n{{"n": 3}}\n')
    with pytest.raises(SVFError, match=r"a\.jsonl, line 2 is damaged.*: correct it$") as error:
        read_json_lines(tmp_path / "a.jsonl", number, "correct it")
    assert "\n" not in str(error.value)


def test_lines_may_be_compressed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"n": 1}\n'))
    assert read_json_lines(tmp_path / "a.jsonl.gz", number) == [1]
    (tmp_path / "a.jsonl.gz").write_bytes(b"plain")
    with pytest.raises(SVFError, match=r"cannot read .*a\.jsonl\.gz"):
        read_json_lines(tmp_path / "a.jsonl.gz", number)


def test_values_as_json_holds_them() -> None:
    assert normalize_json({"a": (1, 2), 3: Path("b")}) == {"a": [1, 2], "3": "b"}
