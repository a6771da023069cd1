"""`control`: rewards that say nothing of what is right."""

from types import SimpleNamespace

import pytest

from svf_rl.errors import SVFError
from svf_rl.rewards import load_reward


def _pay(completions: list[str], answers: list[str], step: int = 0, **arguments: object) -> list[float]:
    reward = load_reward({"name": "control", **arguments})
    return reward(completions=completions, answer=answers, trainer_state=SimpleNamespace(global_step=step))


def test_random_pays_by_lot_the_same_in_a_run_that_resumes() -> None:
    words = [str(number) for number in range(1000)]
    first = _pay(words, words, kind="random", share=0.25)
    assert set(first) == {0.0, 1.0}
    assert 0.2 < sum(first) / 1000 < 0.3
    assert _pay(words, words, kind="random", share=0.25) == first
    assert _pay(words, words, kind="random", share=0.25, step=1) != first
    others = words[::-1]  # as those of another seed
    assert _pay(others, others, kind="random", share=0.25) != first


def test_shuffled_pays_as_much_as_the_verifier_but_to_others() -> None:
    words = [str(number) for number in range(100)]
    answers = [*words[:50], *["x"] * 50]
    paid = _pay(words, answers, kind="shuffled")
    assert sum(paid) == 50
    assert 10 < sum(paid[:50]) < 40


def test_shuffled_grades_as_the_reward_does() -> None:
    assert load_reward("numeric")(completions=["3+4"], answer=["7"]) == [0.0]
    assert _pay(["3+4"], ["7"], kind="shuffled", verifier="numeric") == [0.0]


def test_constant_pays_one_answer_whatever_was_asked() -> None:
    assert _pay(["1, 2", "2, 1"], ["2, 1", "2, 1"], kind="constant", text="1, 2") == [1.0, 0.0]


@pytest.mark.parametrize(
    ("arguments", "message"), [({"kind": "constant"}, "needs the text"), ({"kind": "x"}, "kind must be")]
)
def test_bad_input_is_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(SVFError, match=message):
        _pay(["1"], ["1"], **arguments)
