"""`reasoning_gym` as a verifier: the data sets' own scorers, which a completion can neither run code in nor hold up."""

import os
import signal
import time
from pathlib import Path

import pytest

from svf_rl.errors import SVFError
from svf_rl.rewards import verify, verify_all
from svf_rl.rewards.verifiers.reasoning_gym import _workers, make_entries, reasoning_gym

pytest.importorskip("reasoning_gym", reason="pip install 'svf-rl[reasoning]'")


def _entry(dataset: str, **config) -> dict:
    return {"dataset": dataset, "config": config, "position": 0}


def test_the_last_tag_is_the_answer_or_all_that_is_not_thinking() -> None:
    entry = _entry("count_bits", min_n=7, max_n=7)  # three bits
    twice = "<answer>4</answer> no: <answer>3</answer>!"
    for completion in ("3", " 3\n", "<answer>3</answer>", twice, "<think>4</think>3"):
        assert verify("reasoning_gym", completion, entry).correct, completion
    for completion in ("4", "<answer>4</answer>3", "", "three"):
        assert verify("reasoning_gym", completion, entry).correct is False, completion


EVALUATING = ["string_insertion", "spiral_matrix", "binary_matrix", "n_queens", "countdown", "puzzle24",
              "polynomial_multiplication", "simple_integration", "intermediate_integration"]  # fmt: skip


@pytest.mark.parametrize("dataset", EVALUATING)
def test_no_scorer_runs_what_the_answer_says(dataset: str, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    codes = [
        f"[].append(open({str(mark)!r}, 'w').write('x'))",
        f"__import__('pathlib').Path({str(mark)!r}).touch()",
        f"(lambda: open({str(mark)!r}, 'w'))()",
        f"[open({str(mark)!r}, 'w') for _ in [1]]",
        f"'\n'.join([str(open({str(mark)!r}, 'w'))])",
    ]
    verdicts = verify_all("reasoning_gym", codes, [_entry(dataset)] * len(codes))
    assert [verdict.correct for verdict in verdicts] == [False] * len(codes)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("dataset", "constant"),
    [("complex_arithmetic", "nan"), ("complex_arithmetic", "inf"), ("puzzle24", "(1+2+3)*4"), ("coin_flip", "0"),
     ("game_of_life_halting", "True"), ("game_of_life_halting", "False")],
)  # fmt: skip
def test_no_constant_answer_is_right_everywhere(dataset: str, constant: str) -> None:
    """Each had the full score of (nearly) all entries."""
    entries = [_entry(dataset) | {"position": position} for position in range(10)]
    rights = [made["answer"] for made in make_entries(dataset, {}, 0, 10)]
    assert sum(bool(verdict.correct) for verdict in verify_all("reasoning_gym", [constant] * 10, entries)) < 8
    assert all(verdict.correct for verdict in verify_all("reasoning_gym", rights, entries))


@pytest.mark.parametrize("dataset", ["countdown", "puzzle24"])
def test_arithmetic_is_still_read(dataset: str) -> None:
    from reasoning_gym.factory import create_dataset

    entry = create_dataset(dataset, seed=0, size=10_000)[0]
    assert verify("reasoning_gym", entry["answer"], _entry(dataset)).correct


def test_an_answer_that_never_ends_is_wrong_and_counted() -> None:
    start = time.monotonic()
    verdict = verify("reasoning_gym", "9**9**9**9", _entry("countdown"), timeout=0.5)
    assert verdict.correct is False
    assert verdict.raised
    assert time.monotonic() - start < 30


def test_a_scorer_that_raises_makes_a_wrong_answer_that_is_counted() -> None:
    verdicts = verify_all("reasoning_gym", ["(" * 5000, "f(1)"], [_entry("polynomial_multiplication")] * 2)
    assert [verdict.correct for verdict in verdicts] == [False, False]


def test_a_killed_worker_is_replaced() -> None:
    entry = _entry("count_bits", min_n=7, max_n=7)
    assert verify("reasoning_gym", "3", entry).correct
    for worker in list(_workers._idle):
        os.killpg(worker._process.pid, signal.SIGKILL)
    assert verify("reasoning_gym", "3", entry).correct


@pytest.mark.parametrize("reference", ["text", "{}", {"dataset": "ab"}, None, 3])
def test_a_reference_names_an_entry(reference: object) -> None:
    with pytest.raises(SVFError, match="an answer must have dataset, config and position"):
        verify("reasoning_gym", "3", reference)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (_entry("no_such"), "there is no data set 'no_such'"),
        (_entry("count_bits", bits=3), "count_bits has no key 'bits' here; it has: min_n, max_n"),
        ({**_entry("count_bits"), "position": "0"}, "position a number from 0 on"),
        ({**_entry("count_bits"), "position": -1}, "position a number from 0 on"),
        ({**_entry("count_bits"), "config": "min_n: 2"}, "config a mapping"),
        ({**_entry("count_bits"), "dataset": None}, "dataset must be a name"),
    ],
)  # fmt: skip
def test_an_entry_that_cannot_be_made_is_bad_data_and_no_wrong_answer(entry: dict, message: str) -> None:
    with pytest.raises(SVFError, match=message):
        verify("reasoning_gym", "3", entry)


def test_an_answer_to_an_entry_that_cannot_be_made_is_not_scorable() -> None:
    verdict = reasoning_gym("3", _entry("no_such"))
    assert verdict.correct is None
    assert verdict.reason.startswith("the entry could not be made (ValueError: there is no data set 'no_such'")


def test_the_time_limit_is_a_number_of_seconds() -> None:
    with pytest.raises(SVFError, match="timeout must be a number of seconds"):
        verify("reasoning_gym", "3", _entry("ab"), timeout=0)
