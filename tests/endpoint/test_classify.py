"""The class of a request from the probabilities of next tokens."""

import asyncio
import math

import pytest

from svf_rl.endpoint.classify import Class, classify

# `\boxed{` is 1 2; reasoning and rest begin alike, and a token longer
LABELS = [("code", [1, 2, 3, 9]), ("math", [1, 2, 4, 9]), ("reasoning", [1, 2, 5, 6, 9]), ("rest", [1, 2, 5, 7, 9])]


def _of(probabilities: dict[tuple[int, ...], dict[int, float]]) -> tuple[Class, list[tuple[int, ...]]]:
    asked: list[tuple[int, ...]] = []

    async def next_token(prompt: list[int], branches: list[int]) -> list[float]:
        asked.append(tuple(prompt))
        return [math.log(probabilities[tuple(prompt)][branch]) for branch in branches]

    return asyncio.run(classify([0], LABELS, next_token)), asked


def test_labels_that_part_at_one_token_take_one_question() -> None:
    found, asked = _of({(0, 1, 2): {3: 0.1, 4: 0.3, 5: 0.1}})
    assert found.label == "math"
    assert found.probability == pytest.approx(0.6)
    assert asked == [(0, 1, 2)]  # what all begin with is put behind the prompt


def test_labels_that_part_later_take_one_more() -> None:
    found, asked = _of({(0, 1, 2): {3: 0.1, 4: 0.1, 5: 0.2}, (0, 1, 2, 5): {6: 0.1, 7: 0.3}})
    assert found.label == "rest"
    assert found.probability == pytest.approx(0.5 * 0.75)
    assert asked == [(0, 1, 2), (0, 1, 2, 5)]


def test_a_single_label_is_asked_for_nothing() -> None:
    async def never(prompt: list[int], branches: list[int]) -> list[float]:
        raise AssertionError

    assert asyncio.run(classify([0], LABELS[:1], never)) == Class("code", 1.0)
