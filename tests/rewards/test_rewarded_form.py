"""What training rewards ask of the form of an answer, and what they log of it."""

from svf_rl.rewards import load_reward, verify


def test_training_does_not_pay_a_calculation_that_is_left_undone() -> None:
    reward = load_reward("numeric")
    assert reward(completions=["#### 5 + 3", "#### 8"], answer=["8", "8"]) == [0.0, 1.0]
    assert load_reward({"name": "numeric", "form": "equal"})(completions=["#### 5 + 3"], answer=["8"]) == [1.0]
    assert verify("numeric", "#### 5 + 3", "8").correct


def test_rows_that_name_their_verifiers_are_rewarded_alike() -> None:
    rows = {"answer": ["8", "8", "B"], "verifier": ["numeric", "math", "choice"]}
    completions = ["#### 5 + 3", r"\boxed{5 + 3}", "The answer is B."]
    assert load_reward("verified")(completions=completions, **rows) == [0.0, 0.0, 1.0]


def test_the_shares_of_marked_and_of_several_answers_are_logged() -> None:
    logged: dict[str, float] = {}
    completions = ["#### 8", r"\boxed{8} or \boxed{9}", "it is 8", "#### 7\n#### 8"]
    load_reward("numeric")(completions=completions, answer=["8"] * 4, log_metric=logged.__setitem__)
    assert logged["reward/marked"] == 0.75
    assert logged["reward/several_answers"] == 0.5


def test_what_was_read_as_the_answer_stands_beside_each_completion() -> None:
    columns: dict[str, list[str | None]] = {}
    completions = ["#### 8", "it is 8 or 9", "#### 7"]
    load_reward("numeric")(completions=completions, answer=["8"] * 3, log_extra=columns.__setitem__)
    load_reward("verified")(
        completions=completions, answer=["8"] * 3, verifier=["numeric"] * 3, log_extra=columns.__setitem__
    )
    assert columns == {"numeric/answer": ["8", None, "7"], "verified/answer": ["8", None, "7"]}


def test_a_message_may_hold_parts() -> None:
    parts = [{"type": "text", "text": "#### "}, {"type": "text", "text": "8"}, {"type": "image"}]
    assert verify("numeric", [{"role": "assistant", "content": parts}], "8").correct
    assert load_reward("numeric")(completions=[[{"role": "assistant", "content": parts}]], answer=["8"]) == [1.0]
