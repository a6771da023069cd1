r"""No completion is right for two references: random pieces of answers, put together at random."""

import random

import pytest

from svf_rl.rewards import verify_all

# No two of a list are the same answer.
REFERENCES = {
    "numeric": "5 -5 3 -3 12 0.5 50 2.3 23 5000000 1/3 8 15 1000 7.25 0".split(),
    "choice": [*"ABCDEFGHIJ", *map(str, range(1, 13))],
    "exact_match": ["5", "cat", "the cat", "A", "dog", "cat dog", "-5", "3"],
    "math": [
        "5", "-5", "3", "-3", "12", "0.5", "50", "2.3", "23", "5000000", r"\frac{1}{3}", "8", "15", "x", "3x",
        "x^2", "x+3", "x-3",
        r"\sqrt{2}", r"5\sqrt{3}", r"\pi", r"4\pi", "12t", "12s", "(1,2)", "(2,1)", "[1,2]", "3,5", "3,12",
        r"\text{east}",
        r"\text{no}", r"\infty", "2516_8", "x=y+1", "x<3", "x>3", r"\{x|x=3k\}", "3:15 pm",
        r"\begin{pmatrix}1\\2\end{pmatrix}",
    ],
}  # fmt: skip
PIECES = {
    "numeric": [
        *"5 -5 - 3 12 0.5 50% 2.3 million dozen 1/3 x $ = + *".split(),
        *"( ) , . / ^ 2^3 fifty three cats not or to and is -".split(),
    ],
    "choice": "A B C D (A) (B) (C) D. 3 4 12 A) not or and is correct wrong because so water a plant , .".split(),
    "exact_match": "5 cat the dog A - 3 . ,".split(),
    "math": [
        *r"5 -5 - 3 12 0.5 50\% 2.3 23 \frac{1}{3} x 3x x^2 + - =".split(),
        *r"\sqrt{2} \sqrt \pi 4 12t t s ( ) [ ] , ; 1 2 { }".split(),
        *r"\text{east} \text{no} \text{cm} \text{or} \text{(B)} \cdot \times \le < >".split(),
        *r"\to \mid & million am pm : 3:15 or and not".split(),
        "²", "½", "√", "∞", "π", "y", "k", "_8", "^", "|", "$", " ",
    ],
}  # fmt: skip
FORMS = [
    "{0}", "#### {0}", r"\boxed{{{0}}}", "<answer>{0}</answer>", "The answer is {0}.", "Answer: {0}",
    "So it is {0}.", "It is ${0}$.",
    "<think>{1}</think>{0}", "{1}\n#### {0}", r"\boxed{{{1}}} \boxed{{{0}}}",
    r"\boxed{{{0}}}. Wait, so it is {1}.", "{0} or {1}",
    "The answer is {0}, not {1}.", "The answer is not {0} but {1}.", "{0}\n{1}", "I choose {0}.",
    "**{0}** is {1}", "{0} = {1}",
    r"$\boxed{{{0}}}$ and $\boxed{{{1}}}$", "### Final Answer\n{0}", "What is {0}? It is {1}.",
    r"\boxed{{\text{{{0}}}}}",
]  # fmt: skip


def make_completion(name: str, rng: random.Random) -> str:
    pieces = PIECES[name] + REFERENCES[name]
    parts = [rng.choice(["", " "]).join(rng.choices(pieces, k=rng.choice([1, 1, 2, 3, 4]))) for _ in range(2)]
    return rng.choice(FORMS).format(*parts)


def paid_twice(name: str, completions: list[str]) -> list[tuple[str, list[str]]]:
    """The completions that are right for several references, with these."""
    completions = list(dict.fromkeys(completions))
    # a completion's checks beside each other: what its answer reads as is then at hand
    pairs = [(completion, reference) for completion in completions for reference in REFERENCES[name]]
    verdicts = verify_all(name, *map(list, zip(*pairs, strict=True)), progress=False)
    right: dict[str, list[str]] = {}
    for (completion, reference), verdict in zip(pairs, verdicts, strict=True):
        if verdict.correct:
            right.setdefault(completion, []).append(reference)
    return [(completion, references) for completion, references in right.items() if len(references) > 1]


@pytest.mark.parametrize(("name", "count"), [("numeric", 2000), ("choice", 2000), ("exact_match", 2000), ("math", 250)])
def test_no_completion_is_right_for_two_references(name: str, count: int) -> None:
    rng = random.Random(f"{name} 0")
    assert paid_twice(name, [make_completion(name, rng) for _ in range(count)]) == []


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", REFERENCES)
def test_no_completion_of_100_000_is_right_for_two_references(name: str) -> None:
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(f"{name} {seed}")
    for _ in range(20):
        assert paid_twice(name, [make_completion(name, rng) for _ in range(5_000)]) == [], f"seed {seed}"
