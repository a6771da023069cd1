"""What is shown of an exported model: that each engine answers with it as the adapter does, and what rounding took."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from svf_rl.evaluation.answers import decode_completions
from svf_rl.evaluation.items import TaskItems
from svf_rl.export.engines import Engine, largest_difference
from svf_rl.generation import Completion, Sampling
from svf_rl.text_table import aligned

CERTIFICATE = "certificate.json"
COMPARED = 16
"""Of the answers, whose log-probabilities are compared."""


@dataclass(frozen=True)
class OfEngine:
    """
    What an engine makes of the export, against the adapter on its base under transformers in fp32.

    Args:
        equal_answers (`float`): Share of the greedy answers that are the same to the last token.
        equal_tokens (`float`): Share of their tokens that are the same at the same place.
        logp_difference (`float`): The largest between log-probabilities at each place of the adapter's answers: of the
            whole vocabulary, and under vLLM of the answers' own tokens.
        accuracy (`float`): Of the answers.
        equal_prompts (`float`, *optional*): Share of the prompts' texts of which the file's own tokenizer makes the
            same tokens.
    """

    engine: str
    equal_answers: float
    equal_tokens: float
    logp_difference: float
    accuracy: float
    equal_prompts: float | None = None


@dataclass(frozen=True)
class Rounding:
    """
    What storing did to the change `Δ = W' − W` of all `matrices` together.

    Args:
        lost (`float`): `1 − ⟨Q(W') − Q(W), Δ⟩ / ⟨Δ, Δ⟩`: the share of the change that is gone.
        noise (`float`): `‖Q(W') − W'‖ / ‖Δ‖`: the rounding of all weights, for which the change is small.
    """

    matrices: int
    lost: float
    noise: float


@dataclass(frozen=True)
class Certificate:
    """Of an export; written as `certificate.json`. `accuracy` is that of the adapter."""

    format: str
    stored_as: str
    bytes: int
    rounding: Rounding
    task: str
    items: int
    accuracy: float
    engines: list[OfEngine]

    def __str__(self) -> str:
        rows = [
            {
                "engine": one.engine,
                "equal answers": f"{one.equal_answers:.1%}",
                "equal tokens": f"{one.equal_tokens:.1%}",
                "log p differs by": f"{one.logp_difference:.1e}",
                "accuracy": f"{one.accuracy:.3f}",
            }
            | ({} if one.equal_prompts is None else {"prompts read alike": f"{one.equal_prompts:.1%}"})
            for one in self.engines
        ]
        lost = round(self.rounding.lost, 4) + 0.0  # and not -0.0
        return (
            f"{aligned(rows)}\n\n{self.items} rows of {self.task}, answered greedily, against the adapter under "
            f"transformers in float32 (accuracy {self.accuracy:.3f})\n{self.stored_as}, {self.bytes / 1e6:,.1f} MB: of "
            f"the change of {self.rounding.matrices} matrices {lost:.2%} is lost; the rounding of all "
            f"weights is {self.rounding.noise:.2g} of its norm"
        )


@dataclass(frozen=True)
class Expected:
    """What the adapter itself answers, and its log-probabilities (completion, vocabulary) at the first of them."""

    answers: list[Completion]
    logps: list[Tensor]

    @classmethod
    def of(cls, engine: Engine, prompts: Sequence[list[int]], sampling: Sampling) -> "Expected":
        answers = engine.answer(prompts, sampling)
        return cls(answers, [engine.logps(text, start) for text, start in _texts(prompts, answers)])


def compare(
    engine: Engine,
    expected: Expected,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    grade: Callable[[Sequence[Completion]], float],
    equal_prompts: float | None = None,
) -> OfEngine:
    """Ask an engine what the adapter was asked."""
    answers = engine.answer(prompts, sampling)
    differences = [
        largest_difference(engine.logps(text, start), logps, text[start:])
        for (text, start), logps in zip(_texts(prompts, expected.answers), expected.logps, strict=True)
    ]
    same = sum(one.token_ids == other.token_ids for one, other in zip(answers, expected.answers, strict=True))
    return OfEngine(
        engine.name,
        same / len(answers),
        equal_tokens(answers, expected.answers),
        max(differences),
        grade(answers),
        equal_prompts,
    )


def _texts(prompts: Sequence[list[int]], answers: Sequence[Completion]) -> Iterator[tuple[list[int], int]]:
    for prompt, answer in list(zip(prompts, answers, strict=True))[:COMPARED]:
        yield prompt + answer.token_ids, len(prompt)


def accuracy(tokenizer: Any, items: TaskItems, completions: Sequence[Completion]) -> float:
    """Of the answers that could be graded; NaN where none could."""
    texts = decode_completions(tokenizer, completions, items.sampling.stop)
    verdicts = items.grader.grade(items.rows, texts, [completion.token_ids for completion in completions])
    graded = [verdict.correct for verdict in verdicts if verdict.correct is not None]
    return sum(graded) / len(graded) if graded else math.nan


def equal_tokens(one: Sequence[Completion], other: Sequence[Completion]) -> float:
    """Share of the tokens of both that are the same at the same place."""
    pairs = [(a.token_ids, b.token_ids) for a, b in zip(one, other, strict=True)]
    same = sum(x == y for a, b in pairs for x, y in zip(a, b, strict=False))
    longest = sum(max(len(a), len(b)) for a, b in pairs)
    return same / longest if longest else 1.0


def rounding(matrices: Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]) -> Rounding:
    """Of `(W, W', Q(W), Q(W'))` for each matrix; see [`Rounding`]."""
    count = change = kept = noise = 0.0
    for weight, tuned, stored_weight, stored in matrices:
        delta = tuned.double() - weight.double()
        count += 1
        change += delta.square().sum().item()
        kept += ((stored.double() - stored_weight.double()) * delta).sum().item()
        noise += torch.dist(stored.double(), tuned.double()).item() ** 2
    if change == 0:
        return Rounding(int(count), 0.0, math.inf if noise else 0.0)
    return Rounding(int(count), 1 - kept / change, math.sqrt(noise / change))
