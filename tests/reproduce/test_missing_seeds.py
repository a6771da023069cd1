"""Figures where a seed is missing: what is compared is of the same seeds, and tables say of how many."""

import pytest

from svf_rl.reproduce.document import tabulate_accuracies
from svf_rl.reproduce.raw import encode
from svf_rl.reproduce.results import _compare_adaptations

RAW = {"few_shot": "few-shot-3", "dispatched": ["prompt"]}


def of(right):
    """The first so many of 100 items right."""
    return encode({item: [item < right] for item in range(100)})


@pytest.fixture
def task():
    """Three seeds of two experts, with the same difference in each; all do badly with the last."""
    seeds = {}
    for seed, (math, few_shot) in {"1": (80, 85), "2": (80, 85), "4": (20, 25)}.items():
        answers = {"base": of(50), "math": of(math), "code": of(0), "mean": of(0), "prompt": of(math - 10)}
        own = {str(item): "math" for item in range(100)}
        made = {"prompt": {"experts": own}}
        summary = {"own_expert": own, "methods": made, "rows": list(range(100))}
        seeds[seed] = {"answers": {**answers, "few-shot-3": of(few_shot)}, "summary": summary}
    return {"label": "exam", "task": "exam", "seeds": seeds}


def test_a_difference_between_methods_is_over_the_seeds_of_both(task):
    whole = _compare_adaptations(RAW, task, ["math", "code"])
    del task["seeds"]["4"]["answers"]["few-shot-3"], task["seeds"]["4"]["answers"]["prompt"]
    part = _compare_adaptations(RAW, task, ["math", "code"])
    for found in (whole, part):
        rows = {row["method"]: row for row in found["rows"]}
        assert found["few_shot_against_best_expert"]["value"] == pytest.approx(0.05)
        assert rows["prompt"]["against_oracle"]["value"] == pytest.approx(-0.1)
        assert rows["oracle"]["by_seed"] == {1: 0.8, 2: 0.8, 4: 0.2}
    lines = tabulate_accuracies(part["rows"], experts=["math", "code"], planned=3).splitlines()
    seeds = {cells[1].strip(): cells[5].strip() for cells in (line.split("|") for line in lines[2:])}
    assert (seeds["base model"], seeds["expert math"], seeds["few-shot, 3 prompts"]) == ("", "3", "2 of 3")
