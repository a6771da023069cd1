"""The report, from recorded figures: what the tables and pictures of a finished comparison say."""

import numpy as np
import pytest
from matplotlib.image import imread

from svf_rl.markdown import markdown_table
from svf_rl.reproduce.arguments import PARTS
from svf_rl.reproduce.document import render_document, tabulate_accuracies
from svf_rl.reproduce.estimates import compared, estimate
from svf_rl.reproduce.figures import draw_adaptation, draw_fine_tuning, draw_shots
from svf_rl.reproduce.run import write_results
from svf_rl.reproduce.training_figures import draw_methods, draw_passes


def row(method, right, of=100, seeds=(0, 1), base_right=50):
    """A line as `results.json` holds it; seed s gets s items more right."""
    by_seed = {seed: {item: item < right + seed for item in range(of)} for seed in seeds}
    found = estimate(by_seed)
    base = {0: {item: item < base_right for item in range(of)}}
    against = compared(by_seed, base)
    accuracies = {seed: sum(verdicts.values()) / of for seed, verdicts in by_seed.items()}
    return {
        "method": method, "accuracy": found.value, "interval": list(found.interval), "by_seed": accuracies,
        "seeds": len(seeds), "items": found.n, "not_scorable": 0,
        "against_base": {"value": against.value, "interval": list(against.interval)},
    }  # fmt: skip


def base_row():
    found = row("base", 50, seeds=(0,))
    del found["against_base"]
    return found


FAILED = {"method": "lora", "accuracy": None, "status": "failed"}


@pytest.fixture
def results():
    shots = [{**row(f"few-shot-{n}", 70 + n), "shots": n, "search_seconds": 12.3} for n in (3, 10)]
    methods = [base_row(), row("math", 60), row("mean", 65), row("prompt", 62), row("few-shot-10", 80)]
    return {
        "comparison": "small",
        "model": "quickstart",
        "seeds": {part: [0, 1] for part in PARTS},
        "failed": {"math-lora-seed0": "out of memory"},
        "notes": ["sums is not unseen"],
        "experts": ["math"],
        "fine_tuning": [{"task": "gsm8k", "expert": "math", "rows": [base_row(), FAILED, row("svf", 80)]}],
        "adaptation": [
            {
                "label": "exam", "task": "exam", "few_shot": "few-shot-10", "rows": methods,
                "few_shot_against_best_expert": {"expert": "math", "value": 0.2, "interval": [0.1, 0.3]},
            }
        ],
        "ablations": [{"task": "gsm8k", "expert": "math", "rows": [base_row(), {**row("no-KL", 70), "name": "no KL"}]}],
        "variants": {"no KL": {"beta": 0}},
        "shots": [{"label": "exam", "task": "exam", "base": base_row(), "rows": shots}],
        "timing": [
            {
                "label": "exam", "items": 100,
                "rows": [
                    {
                        "method": "prompt", "seeds": 2,
                        "first_pass_seconds": 1.0, "second_pass_seconds": 2.0, "syncs": 4.0,
                    },
                    {
                        "method": "few-shot-10", "seeds": 2,
                        "first_pass_seconds": 12.0, "second_pass_seconds": 2.0, "syncs": 96.0,
                    },
                ],
            }
        ],
        "hardware": {"processor": "a processor", "gpu": ""},
        "packages": {"torch": "2.13.0"},
        "seconds": {"cells": 9, "processes": 300.0, "jobs": 2, "this_call": 170.0, "made_now": 9},
    }  # fmt: skip


def test_a_line_holds_accuracy_interval_seeds_and_items():
    line = tabulate_accuracies([base_row(), row("svf", 80)]).splitlines()[3]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    name, accuracy, seeds, against, count, items = cells
    assert (name, seeds, count, items) == ("SVF", "80.0 to 81.0", "2", "100")
    assert accuracy.startswith("80.5 (")
    assert against.startswith("+30.5 (")


def test_the_base_model_has_no_seed_and_a_failed_cell_says_so():
    table = tabulate_accuracies([base_row(), FAILED])
    assert "| base model | 50.0 (40.4 to 59.6) |  |  |  | 100 |" in table
    assert "| LoRA | failed |" in table


def test_cells_with_bars_do_not_break_a_table():
    assert "a\\|b" in markdown_table(["x"], [["a|b"]])


def test_the_report_says_what_the_figures_cover(results):
    text = render_document(results, {"adaptation": "adaptation.png"})
    for part in (
        "seeds 0, 1", "bootstrap over the items", "do not predict gains", "sums is not unseen",
        "math-lora-seed0: out of memory", "![accuracy by method](adaptation.png)", "| no KL |", "| expert math |",
        "few-shot, 10 prompts", "(math): +20.0 (+10.0 to +30.0) points",
        "| dispatch by a prompt | 2 | 1.00 | 2.00 | 0.50 | 4 |",
        "**math**: gsm8k", "a processor", "torch 2.13.0", "- cells: 9",
    ):  # fmt: skip
        assert part in text, part
    assert "fine_tuning.png" not in text  # not drawn, not shown


def test_another_model_s_report_says_nothing_of_the_bundled_one(results):
    assert "bundled model" not in render_document({**results, "model": "meta-llama/Meta-Llama-3-8B-Instruct"}, {})


def test_parts_that_were_not_asked_for_have_no_heading(results):
    for part, heading in (("fine_tuning", "## Fine-tuning"), ("adaptation", "## Adaptation"), ("shots", "## Few-shot")):
        less = {key: value for key, value in results.items() if key != part}
        assert heading in render_document(results, {})
        assert heading not in render_document(less, {})


def test_all_files_are_written_and_no_picture_is_blank(results, tmp_path):
    write_results(results, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    pictures = {f"{name}.png" for name in ("fine_tuning", "methods", "adaptation", "shots", "timing")}
    assert names == {"report.md", "results.json", *pictures}
    for name in names:
        if name.endswith(".png"):
            picture = imread(tmp_path / name)
            assert 200 < picture.shape[0] < 2000
            assert 1000 < picture.shape[1] < 1300
            assert np.asarray(picture).std() > 0.05
            assert f"]({name})" in (tmp_path / "report.md").read_text()


def test_a_picture_that_there_is_nothing_for_any_more_is_taken_away(results, tmp_path):
    write_results(results, tmp_path)
    write_results({key: value for key, value in results.items() if key != "shots"}, tmp_path)
    assert not (tmp_path / "shots.png").exists()


def test_pictures_name_their_axes_and_methods(results):
    (axes,) = draw_fine_tuning(results["fine_tuning"]).axes
    assert axes.get_ylabel() == "accuracy (%)"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["math"]
    (axes,) = draw_adaptation(results["adaptation"], ["math"]).axes
    assert axes.get_xlabel() == "accuracy (%)"
    assert [label.get_text() for label in axes.get_yticklabels()][:3] == [
        "base model", "expert math", "plain mean of the experts",
    ]  # fmt: skip


def test_nothing_is_drawn_of_nothing():
    assert draw_fine_tuning([]) is None
    assert draw_fine_tuning([{"task": "a", "expert": "b", "rows": [FAILED]}]) is None
    assert draw_adaptation([], []) is None


def test_legends_say_what_whiskers_dots_and_colours_are(results):
    tuned, adapted, shots = (
        draw_fine_tuning(results["fine_tuning"]),
        draw_adaptation(results["adaptation"], results["experts"]),
        draw_shots(results["shots"]),
    )
    named = [{text.get_text() for legend in figure.legends for text in legend.get_texts()} for figure in
             (tuned, adapted, shots)]  # fmt: skip
    assert all({"95 % interval", "a seed"} <= names for names in named)
    assert {"reference", "one expert", "experts mixed", "dispatch"} <= named[1]


LONG = "a variant with a name of " + "rather " * 12 + "many words"


def test_long_names_and_many_methods_are_told_apart():
    methods = {"base": "base model", "svf": "SVF", **{f"v-{n}": f"variant = {n}" for n in range(14)}}
    passes = {k: {0: 0.5} for k in ("1", "2")}
    rows = [{"method": method, "name": name, "pass_at_k": passes} for method, name in methods.items()]
    figure = draw_passes([{"name": "sampled", "expert": "math", "rows": rows}])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(methods.values())
    lines = figure.axes[0].get_lines()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(methods)

    named = {**row("v", 70), "name": LONG, "trained_values": 128}
    figure = draw_methods([{"task": "gsm8k", "expert": "math", "rows": [base_row(), named]}])
    (label,) = (text.get_text() for text in figure.axes[0].get_yticklabels())
    assert label == "a variant wi...r many words, 128 values"


def test_the_report_names_the_folders_that_are_there(results, tmp_path):
    for name in ("probes", "evaluation", "cells"):
        (tmp_path / name).mkdir()
    write_results(results, tmp_path)
    last = (tmp_path / "report.md").read_text().splitlines()[-1]
    assert last.endswith("`raw.json`; answers with their verdicts, and adapters: `evaluation/`, `probes/`")
