"""`summary.json` keeps its keys, takes those of later versions, and names what is wrong in it."""

import json

import pytest

from svf_rl.errors import SVFError
from svf_rl.runs.run_folder import read_summary
from svf_rl.runs.summary import RunSummary

KEYS = [
    "recipe", "seed", "trained_values", "rows", "packages", "git_commit", "warnings", "run", "base_accuracy",
    "accuracy", "items", "updates", "best_checkpoint", "seconds", "warm_up",
]  # fmt: skip
CONTENT = {"recipe": {"task": "gsm8k"}, "accuracy": 0.75, "base_accuracy": 0.5, "items": 100, "updates": 3}


def test_a_file_holds_every_key_in_the_order_of_before():
    assert list(RunSummary.from_dict(CONTENT).to_dict()) == KEYS


def test_keys_of_a_later_version_are_kept(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({**CONTENT, "carbon": {"kg": 1}}))
    summary = read_summary(tmp_path)
    assert (summary.updates, summary.seed, summary.rows) == (3, None, {})
    assert summary.to_dict()["carbon"] == {"kg": 1}
    assert RunSummary.from_dict(summary.to_dict()) == summary


def test_accuracies_have_wilsons_interval():
    summary = RunSummary.from_dict(CONTENT)
    assert summary.after.value == 0.75
    assert summary.after.interval == pytest.approx((0.657, 0.825), abs=1e-3)
    assert summary.before.n == 100
    assert RunSummary().after is None


def test_another_s_summary_is_none(tmp_path):
    assert read_summary(tmp_path) == RunSummary()
    (tmp_path / "summary.json").write_text('{"results": []}')
    assert read_summary(tmp_path) == RunSummary()


@pytest.mark.parametrize("wrong", [{"items": "many"}, {"seconds": []}, {"accuracy": True}])
def test_a_value_of_another_type_is_named(wrong, tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({**CONTENT, **wrong}))
    with pytest.raises(SVFError, match=f"summary.json is damaged.*{next(iter(wrong))}"):
        read_summary(tmp_path)
