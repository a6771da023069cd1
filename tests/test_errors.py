"""What is quoted in a message of one line."""

from svf_rl.errors import one_line
from svf_rl.rewards.verifier import Verdict


def test_a_long_text_keeps_whole_words_of_its_beginning_and_its_end() -> None:
    words = [f"word{number}" for number in range(200)]
    head, tail = one_line("\n".join(words), 100).split(" … ")
    assert len(head) + len(tail) <= 100
    assert [*head.split(), *tail.split()] == [*words[: len(head.split())], *words[-len(tail.split()) :]]


def test_an_error_without_a_text_is_named_and_an_empty_text_stays_empty() -> None:
    assert one_line(NotImplementedError()) == "NotImplementedError"
    assert one_line("") == Verdict(True, "4", "").reason == ""
