"""Results as lines of plain text."""

from collections.abc import Sequence

from svf_rl.evaluation.summary import Estimate, Result

_TEXT = {"task", "model", "metric"}  # the columns that start at the left


def table(results: Sequence[Result]) -> str:
    """A line for each model and task, and one more for each further k of pass@k."""
    rows: list[dict[str, str]] = []
    for result in results:
        ks = [k for k in result.pass_at_k if k > 1]
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
        for k in ks:
            rows.append({"task": "", "model": "", "metric": f"pass@{k}", **_estimate(result.pass_at_k[k])})
    return aligned(rows)


def aligned(rows: Sequence[dict[str, str]]) -> str:
    """The rows under their headings, in columns as wide as they need to be."""
    headings = list(dict.fromkeys(name for row in rows for name in row))
    widths = {name: max(len(name), *(len(row.get(name, "")) for row in rows)) for name in headings}
    lines = [
        "  ".join(
            text.ljust(widths[name]) if name in _TEXT else text.rjust(widths[name])
            for name, text in ((name, row.get(name, "")) for name in headings)
        ).rstrip()
        for row in [{name: name for name in headings}, *rows]
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _estimate(estimate: Estimate) -> dict[str, str]:
    if estimate.value is None or estimate.interval is None:
        return {"value": "none", "95 %": ""}
    low, high = estimate.interval
    return {"value": f"{estimate.value:.3f}", "95 %": f"{low:.3f}-{high:.3f}"}
