"""The learning rate of which the tables of methods show the accuracies."""

import json

from generate.measurements import RESULTS
from generate.methods import METHODS, best_rate, methods


def _run(rate: float, seed: int, validation: float) -> dict[str, float]:
    return {"rate": rate, "seed": seed, "validation": validation}


def test_two_rates_are_compared_on_the_seeds_that_both_have() -> None:
    better = [_run(1.0, 0, 0.6), _run(1.0, 1, 0.9), _run(1.0, 2, 0.2)]
    lucky = [_run(2.0, 1, 0.8)]  # the higher mean, of the one seed that is easy for both
    assert best_rate([*lucky, *better]) == best_rate([*better, *lucky]) == 1.0


def test_a_rate_that_wins_against_each_other_one_is_shown() -> None:
    runs = [_run(0.5, 0, 0.5), _run(1.0, 0, 0.6), _run(1.0, 1, 0.7), _run(2.0, 1, 0.8), _run(2.0, 0, 0.61)]
    assert best_rate(runs) == 2.0


def test_a_rate_without_seeds_in_common_wins_nothing() -> None:
    assert best_rate([_run(1.0, 0, 0.5), _run(2.0, 0, 0.4), _run(4.0, 1, 0.9)]) == 1.0


def test_the_best_rate_of_each_measured_method_beats_all_its_others() -> None:
    """Or a table would show one of several that beat one another in a circle."""
    for name in ("methods_h200", "methods_cpu"):
        result = json.loads((RESULTS / f"{name}.json").read_text())
        for method in METHODS:
            runs = [run for run in result["runs"] if run["method"] == method and "test" in run]
            best = best_rate(runs) if runs else None
            for other in {run["rate"] for run in runs} - {best}:
                assert best_rate([run for run in runs if run["rate"] in (best, other)]) == best, (method, other)
        assert {row["method"] for row in methods(result)} <= set(METHODS.values())
