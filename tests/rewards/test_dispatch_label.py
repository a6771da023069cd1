r"""`dispatch_label` reads the kind of task from the first box."""

import pytest

from svf_rl.errors import SVFError
from svf_rl.rewards import verify


@pytest.mark.parametrize(
    ("completion", "label"),
    [
        (r"\boxed{code}", "code"),
        (r"It asks for a sum: \boxed{Math}.", "math"),
        (r"\boxed{reasoning} and not \boxed{code}", "reasoning"),
        (r"$\boxed{\text{other}}$", "other"),
        (r"\boxed{ CODE }", "code"),
        (r"\boxed{\textbf{math}}", "math"),
        (r"\boxed{mathematics}", "math"),
        (r"\boxed{Programming}", "code"),
        (r"\boxed{Others.}", "other"),
    ],
)
def test_the_first_box_is_the_label(completion: str, label: str) -> None:
    verdict = verify("dispatch_label", completion, label)
    assert (verdict.correct, verdict.extracted) == (True, label)
    other = "other" if label != "other" else "code"
    assert verify("dispatch_label", completion, other).correct is False


@pytest.mark.parametrize(
    "completion", ["", "math", r"\boxed{}", r"\boxed{music} \boxed{math}", r"\boxed{math", r"\boxed{" * 100_000]
)
def test_without_a_label_it_is_wrong(completion: str) -> None:
    assert verify("dispatch_label", completion, "math").correct is False


@pytest.mark.parametrize("gold", ["music", "", None, 3, r"\boxed{math} or code"])
def test_a_reference_is_one_of_the_four(gold: object) -> None:
    with pytest.raises(SVFError, match=r"dispatch_label: (an|the) answer"):
        verify("dispatch_label", r"\boxed{math}", gold)


def test_other_labels_take_the_place_of_the_four() -> None:
    labels = ["word_sorting", "logic"]
    # an alias of one of the four means itself where it is a label
    for completion, label in ((r"\boxed{\text{Word_sorting}}", "word_sorting"), (r"\boxed{Logic}", "logic")):
        verdict = verify("dispatch_label", completion, label, labels=labels)
        assert (verdict.correct, verdict.extracted) == (True, label)
    assert verify("dispatch_label", r"\boxed{math}", "logic", labels=labels).correct is False
    with pytest.raises(SVFError, match="the answer 'math' is not one of word_sorting, logic"):
        verify("dispatch_label", r"\boxed{math}", "math", labels=labels)


@pytest.mark.parametrize("labels", [[], ["one"], ["a", "a"], "ab", ["a", 1], ["a", ""], ["a", "B"], ["a", "b}"]])
def test_labels_that_no_completion_could_name_are_refused(labels: object) -> None:
    with pytest.raises(SVFError, match=r"at least two different names|lower-case words"):
        verify("dispatch_label", r"\boxed{a}", "a", labels=labels)
