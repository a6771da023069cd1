"""What tables show of figures: intervals where something varies, tests for as many as are planned, text as text."""

from copy import deepcopy

import pytest
from recorded import ITEMS, SEEDS, answers

from svf_rl.metrics.statistics import paired_t
from svf_rl.reproduce.document import render_document
from svf_rl.reproduce.raw import encode
from svf_rl.reproduce.results import collect


def test_a_test_that_did_not_come_out_counts_as_well(raw):
    for seed, right in enumerate([84, 85, 86]):
        raw["evaluations"]["math"][f"math-other-seed{seed}"] = encode(answers(right + seed % 2))
    rows = {row["method"]: row for row in collect(raw)["ablations"][0]["rows"]}
    assert "p" not in rows["less"]["against_reference"]
    assert rows["other"]["against_reference"]["p_holm"] == pytest.approx(3 * rows["other"]["against_reference"]["p"])
    for seed in SEEDS:
        del raw["evaluations"]["math"][f"math-less-seed{seed}"]
    rows = {row["method"]: row for row in collect(raw)["ablations"][0]["rows"]}
    assert rows["other"]["against_reference"]["p_holm"] == pytest.approx(3 * rows["other"]["against_reference"]["p"])


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
    assert "| -3.500 | | | -0.500 | 1 of 3" in report
    assert "| SVF | 100.0 | 100.0 |" in report


def test_a_probe_is_tested_against_svf_in_a_family_of_its_own(raw):
    probe = raw["probes"][0]
    probe["methods"] = ["svf", "other"]
    for seed, right in enumerate([60, 70, 90]):
        probe["answers"][f"math-svf-seed{seed}"] = encode(answers(right))
        probe["answers"][f"math-other-seed{seed}"] = encode(answers(right - 10 - seed))
    raw["probes"].append({**deepcopy(probe), "name": "harder"})
    for found in collect(raw)["probes"]:
        (other,) = (row["against_reference"] for row in found["rows"] if row["method"] == "other")
        assert other["value"] == pytest.approx(-0.11)
        assert other["p_holm"] == other["p"] == pytest.approx(paired_t([-0.1, -0.11, -0.12]))


def test_adaptations_are_tested_against_the_best_single_expert(raw):
    """Neither the other experts nor the oracle count among the tests."""
    seeds = {}
    for seed, right in enumerate([60, 70, 80]):
        found = {"base": 50, "math": right, "code": 20, "mean": right + 5 + seed, "few-shot-3": right + 9 - seed}
        seeds[str(seed)] = {"answers": {name: encode(answers(n)) for name, n in found.items()}, "summary": None}
    raw["parts"].append("adaptation")
    raw["seeds"]["adaptation"] = [0, 1, 2]
    raw["experts"]["code"] = "mbpp"
    raw["adaptations"] = [{"label": "exam", "task": "exam", "seeds": seeds}]
    (found,) = collect(raw)["adaptation"]
    rows = {row["method"]: row for row in found["rows"]}
    assert found["best_expert"] == "math"
    assert {method for method, row in rows.items() if "p" in row.get("against_reference", ())} == {"mean", "few-shot-3"}
    assert rows["mean"]["against_reference"]["value"] == pytest.approx(0.06)
    assert rows["few-shot-3"]["against_reference"]["p_holm"] == pytest.approx(2 * paired_t([0.09, 0.08, 0.07]))
    assert rows["code"]["against_reference"]["value"] == pytest.approx(-0.5)
    report = render_document(collect(raw), ())
    assert "| 95 % over seeds | against the best expert, by seed | p (Holm) |" in report


def test_texts_samples_and_changes_have_intervals_over_seeds(raw):
    raw["texts"][0]["scores"] |= {f"math-svf-seed{seed}": [-2.0 - 0.1 * seed, -4.0, -9.0] for seed in SEEDS}
    for seed, right in enumerate([10, 20, 30]):
        item = {i: [i < right, i < right] for i in range(ITEMS)}
        raw["probes"][0]["answers"][f"math-svf-seed{seed}"] = encode(item)
    moved = {"layer": [0, 1], "stable_rank": [1, 1], "effective_rank": [1, 1], "diagonal": [1, 1]}
    raw["changes"] = {
        "math": {f"math-svf-seed{seed}": {**moved, "relative": [0.01 * seed, 0.01 * seed + 0.02]} for seed in SEEDS}
    }
    for seed in SEEDS:
        raw["runs"][f"math-svf-seed{seed}"]["curves"]["entropy"] = [2.0 + seed, 1.0, None, 0.5]
    results, half = collect(raw), 4.3027 / 3**0.5  # Student's, of three values one apart
    assert results["texts"][0]["rows"][1]["interval_over_seeds"] == pytest.approx(
        [-3.05 - 0.05 * half, -3.05 + 0.05 * half], rel=1e-4
    )
    (svf,) = (row for row in results["probes"][0]["rows"] if row["method"] == "svf")
    assert svf["pass_at_k_over_seeds"][1] == pytest.approx([0.0, 0.2 + 0.1 * half], rel=1e-4)
    (row,) = (row for row in results["changes"][0]["rows"] if row["method"] == "svf")
    assert row["relative_over_seeds"] == pytest.approx([0.02 - 0.01 * half, 0.02 + 0.01 * half], rel=1e-4)
    assert row["entropy"] == [3.0, 0.5]
    report = render_document(results, ())
    assert "| 95 % over seeds | 0.0 to 44.8 | 0.0 to 44.8 |" in report  # a share lies between 0 and 1
    assert "| 2.00 | 0.00 to 4.48 |" in report
    assert "| 3.00, 0.50 |" in report


def test_the_sentence_on_signs_is_of_the_fewest_seeds_of_a_test(raw):
    assert "with n seeds, 0.25 here." in " ".join(render_document(collect(raw), ()).split())
    raw["seeds"]["fine_tuning"] = [0, 1, 2, 3, 4]
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
