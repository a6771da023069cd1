"""The worker process of reasoning-gym: it makes entries of data sets, and scores answers by their own scorers.

Both are made here, since some data sets depend on the order of hash tables, which is fixed in workers. An entry is
named by its data set, configuration and position; `svf_rl/sandbox/supervised_child.py` has the time-outs.

A request is `{"do": "make", "dataset", "config", "first", "count", ...}`, answered by `{"entries": [...]}` with
`question` and `answer` (text, or `null` where there is no single one), or by `{"refused": text}`; or it is
`{"do": "score", "dataset", "config", "position", "completion", ...}`, answered by `{"score": number}`,
`{"raised": text}` or `{"ended": "late" | "crashed" | "died"}`, each with `"entry"`, whether the entry had been made.
"""

import ast
import cmath
import dataclasses
import importlib
import logging
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

from svf_rl.sandbox.supervised_child import serve_requests
from svf_rl.sandbox.text_evaluation import only_arithmetic_is_evaluated

# Entries of one object of a data set: some prepare all of them, or take no more. The next have another object.
ENTRIES = 10_000
# Whose scorers call Python's `eval` with the answer: there it reads literals alone.
_EVALUATING = (
    "algorithmic.string_insertion", "algorithmic.spiral_matrix", "algorithmic.number_sorting",
    "algorithmic.binary_matrix", "games.n_queens",
)  # fmt: skip


def _is_finite(data: Any, answer: str, entry: Any) -> bool:
    value = data.parse_string_to_complex(answer)
    return value is None or cmath.isfinite(value)


def _uses_its_numbers(data: Any, answer: str, entry: Any) -> bool:
    return sorted(map(int, re.findall(r"\b\d+\b", answer))) == sorted(entry["metadata"]["numbers"])


def _is_near(data: Any, answer: str, entry: Any) -> bool:
    return abs(Fraction(answer.replace(",", "")) - Fraction(entry["answer"])) <= 1e-4


def _says_the_same(data: Any, answer: str, entry: Any) -> bool:
    return answer.strip().lower() == str(entry["answer"]).lower()


# Whose scorers give a full score to one answer for all entries: nan, four numbers of one's own that make 24, a 0 that
# other numbers begin with, any text for True. What else holds of a right answer.
_HOLDS: dict[str, Callable[[Any, str, Any], bool]] = {
    "complex_arithmetic": _is_finite,
    "puzzle24": _uses_its_numbers,
    "coin_flip": _is_near,
    "game_of_life_halting": _says_the_same,
}


def main() -> None:
    """Answer requests until the standard input ends."""
    logging.disable(logging.WARNING)
    importlib.import_module("reasoning_gym")
    for name in _EVALUATING:
        vars(importlib.import_module(f"reasoning_gym.{name}"))["eval"] = ast.literal_eval
    only_arithmetic_is_evaluated()
    for name, holds in _HOLDS.items():
        _require(name, holds)
    serve_requests(_answer, _reply)


def _require(name: str, holds: Callable[[Any, str, Any], bool]) -> None:
    """Let the scorer of a data set give its full score only where that holds."""
    from reasoning_gym.factory import DATASETS

    dataset = DATASETS[name][0]
    score: Callable[..., float] = dataset.score_answer

    def checked(data: Any, answer: str | None, entry: Any) -> float:
        found = score(data, answer, entry)
        return 0.0 if found == 1 and not holds(data, answer or "", entry) else found

    dataset.score_answer = checked


def _answer(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    # What a data set's code raises, at a configuration or at an answer, is what its user is told.
    try:
        yield from _make(request) if request["do"] == "make" else _score(request)
    except (Exception, RecursionError, MemoryError) as error:  # noqa: BLE001
        yield {"raised": f"{type(error).__name__}: {error}" if str(error) else type(error).__name__}


def _reply(said: list[dict[str, Any]], why: str) -> dict[str, Any]:
    return {"ended": why, "entry": bool(said)} if why else {**said[-1], "entry": len(said) > 1}


def _make(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    positions = range(request["first"], request["first"] + request["count"])
    entries = (_entry(request, position) for position in positions)
    yield {"entries": [{"question": e["question"], "answer": _text(e["answer"])} for e in entries]}


def _score(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    entry = _entry(request, request["position"])
    yield {}  # from here on, what happens is the answer's doing
    data = _dataset(request["dataset"], _frozen(request["config"]), 0)
    yield {"score": float(data.score_answer(request["completion"], entry))}


def _entry(request: dict[str, Any], position: int) -> dict[str, Any]:
    data = _dataset(request["dataset"], _frozen(request["config"]), position // ENTRIES)
    entry: dict[str, Any] = data[position % ENTRIES]
    return entry


@lru_cache(maxsize=64)
def _dataset(name: str, config: str, part: int) -> Any:
    """Data sets draw entry `i` from `seed + i`: with seeds this far apart no two parts have the same."""
    from reasoning_gym.factory import DATASETS, create_dataset

    if name not in DATASETS:
        raise ValueError(f"there is no data set {name!r}; there are: {', '.join(sorted(DATASETS))}")
    given = ast.literal_eval(config)
    known = [field.name for field in dataclasses.fields(DATASETS[name][1]) if field.name not in ("seed", "size")]
    for key in given:
        if key not in known:
            raise ValueError(f"{name} has no key {key!r} here; it has: {', '.join(known)}")
    return create_dataset(name, **given, seed=part * ENTRIES, size=ENTRIES)


def _frozen(config: dict[str, Any]) -> str:
    return repr(config)


def _text(answer: Any) -> str | None:
    return answer if isinstance(answer, str) and answer.strip() else None


if __name__ == "__main__":
    main()
