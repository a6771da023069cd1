"""Results as lines of plain text."""

from collections.abc import Sequence

from svf_rl.evaluation.summary import Result
from svf_rl.metrics.statistics import Estimate
from svf_rl.text_table import aligned


def table(results: Sequence[Result]) -> str:
    """A line for each model and task, and one more for each further k of pass@k."""
    rows: list[dict[str, str]] = []
    for result in results:
        first = "accuracy" if result.metric == "accuracy" else "pass@1"
        rows.append({"task": result.task, "model": result.label, "metric": first, **_estimate(result.accuracy)})
        rows[-1] |= {
            "items": str(result.items),
            "tokens": f"{result.tokens:.0f}",
            "cut off": f"{100 * result.cut_off:.1f} %",
            "not scorable": str(result.not_scorable),
        }
        if result.against_base is not None:
            p = result.against_base.p_value
            rows[-1] |= {
                "gained": str(result.against_base.gained),
                "lost": str(result.against_base.lost),
                "p (McNemar)": "<0.0001" if p < 1e-4 else f"{p:.4f}",
            }
        for k, found in result.pass_at_k.items():
            if k > 1:
                rows.append({"task": "", "model": "", "metric": f"pass@{k}", **_estimate(found)})
    return aligned(rows, left=("task", "model", "metric"))


def _estimate(found: Estimate | None) -> dict[str, str]:
    if found is None:
        return {"value": "none", "95 %": ""}
    return {"value": f"{found.value:.3f}", "95 %": f"{found.low:.3f}-{found.high:.3f}"}
