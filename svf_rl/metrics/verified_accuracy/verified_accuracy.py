"""Metric `verified_accuracy`: the share of completions that a verifier finds right."""

import datasets
import evaluate

from svf_rl.metrics.statistics import as_json, estimate_share
from svf_rl.rewards import verify_all
from svf_rl.rewards.verified import parse_reference

_DESCRIPTION = "The share of completions that a verifier of svf_rl finds right, with Wilson's interval."
_KWARGS = """
Args:
    predictions (`list[str]`): completions.
    references (`list[str]`): right answers, one a completion; a mapping (verifier `unit_tests`) as JSON text.
    verifier (`str`, *optional*, defaults to `"numeric"`): the name of a verifier.
    options (`dict`, *optional*): the verifier's options.
    confidence (`float`, *optional*, defaults to 0.95): of the interval.

Returns:
    `accuracy` (share of the scorable completions that are right; `None` without any), `interval` (its two ends),
    `correct`, `scorable` and `not_scorable` (counts).
"""


class VerifiedAccuracy(evaluate.Metric):
    """Loaded by `evaluate.load(svf_rl.metrics.metric_path("verified_accuracy"))`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[str],
        verifier: str = "numeric",
        options: dict | None = None,
        confidence: float = 0.95,
    ) -> dict:
        verdicts = verify_all(verifier, predictions, [parse_reference(text) for text in references], **(options or {}))
        scorable = [verdict.correct for verdict in verdicts if verdict.correct is not None]
        found = as_json(estimate_share(sum(scorable) / len(scorable), len(scorable), confidence) if scorable else None)
        return {
            "accuracy": found["value"],
            "interval": found["interval"],
            "correct": sum(scorable),
            "scorable": len(scorable),
            "not_scorable": len(verdicts) - len(scorable),
        }
