"""What tables show of figures: intervals where something varies, tests for as many as are planned, text as text."""

import pytest
from recorded import ITEMS, SEEDS, answers

from svf_rl.reproduce.document import render_document
from svf_rl.reproduce.raw import encode
from svf_rl.reproduce.results import collect


def test_a_test_that_did_not_come_out_counts_as_well(raw):
    for seed, right in enumerate([84, 85, 86]):
        raw["evaluations"]["math"][f"math-other-seed{seed}"] = encode(answers(right + seed % 2))
    rows = {row["method"]: row for row in collect(raw)["ablations"][0]["rows"]}
    assert "p" not in rows["less"]["against_svf"]
    assert rows["other"]["against_svf"]["p_holm"] == pytest.approx(2 * rows["other"]["against_svf"]["p"])
    for seed in SEEDS:
        del raw["evaluations"]["math"][f"math-less-seed{seed}"]
    rows = {row["method"]: row for row in collect(raw)["ablations"][0]["rows"]}
    assert rows["other"]["against_svf"]["p_holm"] == pytest.approx(2 * rows["other"]["against_svf"]["p"])


def test_where_nothing_varies_no_interval_is_shown(raw):
    for seed in SEEDS:
        raw["evaluations"]["math"][f"math-less-seed{seed}"] = encode(answers(50))
    raw["texts"][0]["scores"]["math-svf-seed0"] = [-2.5, -4.5, -1.0]
    raw["probes"][0]["answers"]["math-svf-seed0"] = encode({item: [True, True] for item in range(ITEMS)})
    results = collect(raw)
    (less,) = (row for row in results["ablations"][0]["rows"] if row["method"] == "less")
    assert "interval_over_seeds" not in less
    assert less["against_base"] == {"value": 0, "interval": None}
    report = " ".join(render_document(results, ()).replace(" (", "(").split())
    assert "| less of it | 50.0(" in report
    assert "| 50.0 to 50.0 | +0.0 | 3 | 100 | 128 | | -32.0(" in report
    assert "| -3.500 | | -0.500 | 1 of 3" in report
    assert "| SVF | 100.0 | 100.0 |" in report


def test_the_sentence_on_signs_is_of_the_fewest_seeds_of_a_test(raw):
    assert "with n seeds, 0.25 here." in " ".join(render_document(collect(raw), ()).split())
    raw["seeds"] = [0, 1, 2, 3, 4]
    assert "with n seeds, 0.25 here." in " ".join(render_document(collect(raw), ()).split())
    raw["runs"] = {name: run for name, run in raw["runs"].items() if run["method"] != "other"}
    assert "with n seeds." in " ".join(render_document(collect(raw), ()).split())


def test_text_of_runs_and_users_is_text(raw):
    raw["failed"] = {"math-lora-seed0": "expected <tensor> | `x` *y*"}
    raw["probes"][0]["name"] = "a\n\n## b <img src=x>"
    raw["notes"], raw["model"] = ["<b> is not unseen"], "a_b/*c*"
    text = render_document(collect(raw), ())
    for part in (
        "- math-lora-seed0: expected \\<tensor\\> \\| \\`x\\` \\*y\\*\n",
        "**a \\#\\# b \\<img src=x\\>**: gsm8k",
        "- \\<b\\> is not unseen\n",
        ": a_b/\\*c\\*, seeds",
    ):
        assert part in text
