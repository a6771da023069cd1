"""Metric `pass_at_k`: the chance that one of k completions is found right by a verifier."""

import datasets
import evaluate

from svf_rl.errors import SVFError
from svf_rl.metrics.statistics import as_json, estimate_mean, pass_at_k
from svf_rl.rewards import verify_all
from svf_rl.rewards.verified import parse_reference

_DESCRIPTION = (
    "pass@k without bias (Chen et al. 2021): the mean over the problems of 1 - C(n-c, k) / C(n, k), where c of n "
    "completions are right by a verifier of svf_rl."
)
_KWARGS = """
Args:
    predictions (`list[list[str]]`): the completions of each problem.
    references (`list[str]`): right answers, one a problem; a mapping (verifier `unit_tests`) as JSON text.
    k (`int` or `list[int]`, *optional*, defaults to `1`): how many completions may be tried.
    verifier (`str`, *optional*, defaults to `"unit_tests"`): the name of a verifier.
    options (`dict`, *optional*): the verifier's options.
    confidence (`float`, *optional*, defaults to 0.95): of the intervals.

Returns:
    For each k `pass@k` and `pass@k_interval` (bootstrap over the problems; both `None` where no problem has k scorable
    completions), and `not_scorable` (completions).
"""


class PassAtK(evaluate.Metric):
    """Loaded by `evaluate.load(svf_rl.metrics.metric_path("pass_at_k"))`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("string")),
                    "references": datasets.Value("string"),
                }
            ),
        )

    def _compute(
        self,
        predictions: list[list[str]],
        references: list[str],
        k: int | list[int] = 1,
        verifier: str = "unit_tests",
        options: dict | None = None,
        confidence: float = 0.95,
    ) -> dict:
        tries = [k] if isinstance(k, int) else k
        fewest = min(map(len, predictions), default=max(tries))
        if not 1 <= min(tries) <= max(tries) <= fewest:
            raise SVFError(f"k must be between 1 and the completions of every problem ({fewest}), not {tries}")
        completions = [completion for group in predictions for completion in group]
        answers = [
            parse_reference(answer) for group, answer in zip(predictions, references, strict=True) for _ in group
        ]
        verdicts = iter(verify_all(verifier, completions, answers, **(options or {})))
        groups = [[next(verdicts).correct for _ in group] for group in predictions]
        counts = [(len(group) - group.count(None), group.count(True)) for group in groups]  # (scorable, correct)
        result: dict = {}
        for tried in tries:
            values = [pass_at_k(scorable, correct, tried) for scorable, correct in counts if scorable >= tried]
            found = as_json(estimate_mean(values, confidence) if values else None)
            result[f"pass@{tried}"], result[f"pass@{tried}_interval"] = found["value"], found["interval"]
        result["not_scorable"] = sum(group.count(None) for group in groups)
        return result
