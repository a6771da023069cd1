"""JSON from the disk, with one-line errors."""

import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from svf_rl.errors import SVFError

T = TypeVar("T")


def read_json(
    path: Path, remedy: str, shape: Mapping[str, type] | None = None, missing_ok: bool = False
) -> dict[str, Any]:
    """
    The object in a JSON file.

    Args:
        path (`Path`): the file.
        remedy (`str`): the end of the message, which says what to do about a damaged file.
        shape (`Mapping[str, type]`, *optional*): keys that must be there, with the type of each value.
        missing_ok (`bool`, *optional*, defaults to `False`): an empty object where there is no file.

    Raises:
        SVFError: no such file, no JSON, no object, or a key of `shape` that is missing or of another type.
    """
    if missing_ok and not path.is_file():
        return {}
    if path.exists() and not path.is_file():  # reading a device or a pipe may never end
        raise SVFError(f"{path} is no file; {remedy}")
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise SVFError(f"cannot read {path}: {error.strerror}; {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise SVFError(f"{path} is damaged (not valid JSON): {remedy}") from error
    if not isinstance(content, dict):
        raise SVFError(f"{path} is damaged (not a JSON object): {remedy}")
    for key, kind in (shape or {}).items():
        if not isinstance(content.get(key), kind):
            raise SVFError(f"{path} is damaged ({key} is missing or of another type): {remedy}")
    return content


def read_json_lines(
    path: Path,
    parse: Callable[[Any], T],
    remedy: str = "remove that line, or the file",
    torn_ok: bool = True,
    parse_float: Callable[[str], Any] = float,
) -> list[T]:
    """
    What the lines of a file (also `.gz`) hold; nothing where there is no file. Blank lines are passed over.

    Args:
        path (`Path`): the file.
        parse (`Callable`): makes a row of a line's content; what it raises for a missing key, another type or a value
            that cannot be says that the line is damaged.
        remedy (`str`, *optional*): the end of the message.
        torn_ok (`bool`, *optional*, defaults to `True`): a last line without an end, which a process leaves that was
            killed or is writing right now, does not count. Otherwise it counts as the others do.
        parse_float (`Callable`, *optional*): makes a number of the text of one with a point or an exponent.

    Raises:
        SVFError: the file cannot be read, or a line is damaged.
    """
    rows: list[T] = []
    if not path.exists():
        return rows
    if not path.is_file():
        raise SVFError(f"{path} is no file; {remedy}")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip() or (torn_ok and not line.endswith(b"\n")):
                    continue
                try:
                    rows.append(parse(json.loads(line, parse_float=parse_float)))
                except json.JSONDecodeError as error:
                    raise SVFError(f"{path}, line {number} is damaged (not valid JSON: {error}): {remedy}") from error
                except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
                    raise SVFError(f"{path}, line {number} is damaged: {remedy}") from error
    except OSError as error:
        raise SVFError(f"cannot read {path}: {error.strerror or error}; {remedy}") from error
    return rows


def normalize_json(values: Any) -> Any:
    """The values as they come back from a JSON file: tuples and sets (in order) as lists, what JSON has no form
    for as text."""
    return json.loads(json.dumps(values, default=lambda value: sorted(value) if isinstance(value, set) else str(value)))
