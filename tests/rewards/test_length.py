"""`length` rewards completions that are not too long."""

import pytest

from svf_rl.errors import SVFError
from svf_rl.rewards import load_reward, verify


@pytest.mark.parametrize(("tokens", "score"), [(0, 1.0), (4, 1.0), (5, 0.75), (6, 0.5), (8, 0.0), (100, 0.0)])
def test_the_reward_falls_from_target_to_maximum(tokens: int, score: float) -> None:
    verdict = verify("length", "some text", list(range(tokens)), target=4, maximum=8)
    assert verdict.value == pytest.approx(score)
    assert verdict.correct is (score == 1.0)


def test_the_trainer_brings_the_token_ids() -> None:
    reward = load_reward({"name": "length", "target": 1, "maximum": 3})
    assert reward(completions=["a", "b", "c"], completion_ids=[[1], [1, 2], [1, 2, 3]]) == [1.0, 0.5, 0.0]


def test_length_may_be_in_words_or_characters() -> None:
    assert verify("length", "one two  three", target=2, maximum=4, unit="words").value == 0.5
    assert verify("length", "abc", target=2, maximum=4, unit="characters").value == 0.5


@pytest.mark.parametrize(
    "options",
    [
        {"target": 5, "maximum": 5},
        {"target": -1},
        {"target": 2.5},
        {"maximum": True},
        {"unit": "bytes"},
        {},  # tokens, but no token ids
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(SVFError, match="length: "):
        verify("length", "text", **options)
