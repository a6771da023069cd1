"""The verdicts of a careful reader on completions as models, and policies in training, write them."""

import json
from pathlib import Path

import pytest

from svf_rl.errors import SVFError
from svf_rl.rewards import verify

OWN = Path(__file__).with_name("labelled_answers.jsonl")
# Known to be read otherwise than a careful reader would
MISREAD = {
    ("choice", "My first choice is A and my second choice is B."),
    ("numeric", "#### 5 score"),
    ("numeric", "The answer is no more and no less than 64: exactly 64."),
    ("math", "\\boxed{3 \\text{ (three)}}"),
}


def read_cases(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def misread(cases: list[dict[str, object]]) -> list[dict[str, object]]:
    """The cases whose verdict is not the label; a reference that is refused pays nobody."""
    wrong = []
    for case in cases:
        try:
            correct = verify(str(case["verifier"]), str(case["completion"]), case["reference"]).correct
        except SVFError:
            correct = False
        if correct is not case["label"]:
            wrong.append(case)
    return wrong


def test_labelled_answers() -> None:
    cases = read_cases(OWN)
    assert len(cases) > 1000
    assert {(case["verifier"], case["completion"]) for case in misread(cases)} <= MISREAD


@pytest.mark.parametrize("name", ["verifiers_attacks", "verifiers_choice_hand"])
def test_labelled_answers_of_others(shared_data: Path, name: str) -> None:
    path = shared_data.parent / "cases" / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip("the labelled cases are not beside the repository (../shared/cases)")
    assert misread(read_cases(path)) == []
