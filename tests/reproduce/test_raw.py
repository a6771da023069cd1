"""What all figures come from: `raw.json`, and the figures of a comparison that never ran."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from recorded import answers, run_of

from svf_rl.errors import SVFError
from svf_rl.evaluation.records import Record, append_records
from svf_rl.metrics.statistics import paired_t
from svf_rl.reproduce.arguments import ReproduceArguments
from svf_rl.reproduce.comparison import read_comparison
from svf_rl.reproduce.plan import make_plan
from svf_rl.reproduce.raw import decode, encode, gather
from svf_rl.reproduce.results import collect
from svf_rl.reproduce.run import reproduce

QUICKSTART = {"recipe": str(Path(__file__).resolve().parents[2] / "recipes" / "quickstart.yaml"), "skill": "math"}


def test_verdicts_survive_as_text():
    found = {0: [True, False], 2: [None, True], 3: [False]}
    assert encode(found) == ["1 ?0", "0 1 "]
    assert decode(encode(found)) == found
    assert decode(encode({})) == {}


def test_a_method_is_compared_with_svf_seed_by_seed(raw):
    rows = {row["method"]: row for row in collect(raw)["ablations"][0]["rows"]}
    assert rows["less"]["against_reference"]["value"] == pytest.approx(-0.1)
    assert rows["less"]["against_reference"]["interval"] is None  # equal differences know no spread
    assert "p" not in rows["less"]["against_reference"]
    other = rows["other"]["against_reference"]
    assert other["value"] == pytest.approx(0)
    low, high = other["interval"]
    assert low < -0.09
    assert high > 0.09
    assert other["p"] == pytest.approx(1)
    assert "against_reference" not in rows["svf"]


def test_p_values_are_corrected_for_all_tests_of_the_table(raw):
    for seed, right in enumerate([70, 73, 75]):
        raw["evaluations"]["math"][f"math-less-seed{seed}"] = encode(answers(right))
    rows = {row["method"]: row for row in collect(raw)["ablations"][0]["rows"]}
    assert rows["less"]["against_reference"]["p"] == pytest.approx(paired_t([-0.1, -0.09, -0.09]))
    # three rows: LoRA's is counted, though its run failed
    assert rows["less"]["against_reference"]["p_holm"] == pytest.approx(3 * paired_t([-0.1, -0.09, -0.09]))


def test_the_interval_over_seeds_is_wider_than_that_over_few_items_would_say(raw):
    (svf,) = (row for row in collect(raw)["ablations"][0]["rows"] if row["method"] == "svf")
    low, high = svf["interval_over_seeds"]
    # Student's: 4.303 standard errors of three values
    assert high - low == pytest.approx(2 * 4.3027 * 0.02 / 3**0.5, rel=1e-4)


def test_the_interval_over_seeds_holds_accuracies_alone(raw):
    for seed, right in enumerate([40, 95, 95]):
        raw["evaluations"]["math"][f"math-svf-seed{seed}"] = encode(answers(right))
    (svf,) = (row for row in collect(raw)["ablations"][0]["rows"] if row["method"] == "svf")
    assert svf["interval_over_seeds"] == [0.0, 1.0]


def test_lora_counts_among_the_tests_of_both_its_tables(raw):
    for seed, right in enumerate([70, 73, 75]):
        raw["runs"][f"math-lora-seed{seed}"] = run_of("lora", seed)
        raw["evaluations"]["math"][f"math-lora-seed{seed}"] = encode(answers(right))
    results = collect(raw)
    first, second = (
        next(row for row in results[part][0]["rows"] if row["method"] == "lora")
        for part in ("fine_tuning", "ablations")
    )
    found = first["against_reference"]
    assert found["p_holm"] == found["p"] == pytest.approx(paired_t([-0.1, -0.09, -0.09]))
    assert second["against_reference"] == {**found, "p_holm": pytest.approx(3 * found["p"])}


def test_all_runs_are_listed_and_those_that_failed_with_their_reason(raw):
    runs = {run["run"]: run for run in collect(raw)["runs"]}
    assert len(runs) == 10
    assert runs["math-svf-seed1"]["accuracy"] == pytest.approx(0.82)
    assert runs["math-lora-seed0"]["failed"] == "out of memory"


def test_pass_at_k_counts_all_samples_of_an_item(raw):
    base, svf = collect(raw)["probes"][0]["rows"]
    assert svf["accuracy"] == pytest.approx(0.65)
    assert svf["pass_at_k"] == {1: {0: pytest.approx(0.65)}, 2: {0: pytest.approx(0.8)}}
    assert base["pass_at_k"][2] == {0: None}  # it has one sample an item
    low, high = svf["pass_at_k_interval"][2]
    assert 0.7 < low < 0.8 < high < 0.9
    assert base["pass_at_k_interval"][2] is None


def test_a_text_is_compared_over_its_whole_windows_and_without_seeds_that_diverged(raw):
    base, svf = collect(raw)["texts"][0]["rows"]
    assert base["loglikelihood"] == pytest.approx(-3)
    assert (svf["seeds"], svf["diverged"]) == (1, 1)
    assert svf["loglikelihood"] == pytest.approx(-3.05)
    assert svf["against_base"]["value"] == pytest.approx(-0.05)
    assert svf["by_seed"] == {0: pytest.approx(-3.05)}


def test_of_a_text_too_the_difference_to_svf_is_tested_by_seed(raw):
    text = raw["texts"][0]
    text["methods"] = ["svf", "other"]
    for seed, (svf, other) in enumerate([(-3.0, -2.5), (-3.1, -2.5), (-3.2, -2.5)]):
        text["scores"] |= {f"math-svf-seed{seed}": [svf, svf, -9.0], f"math-other-seed{seed}": [other, other, -9.0]}
    found = {row["method"]: row for row in collect(raw)["texts"][0]["rows"]}["other"]["against_reference"]
    assert (found["seeds"], found["value"]) == (3, pytest.approx(0.6))
    assert found["p"] == found["p_holm"] == pytest.approx(paired_t([0.5, 0.6, 0.7]))


def test_the_entropy_of_what_moved_is_that_of_the_runs_that_were_measured(raw):
    for seed, entropy in enumerate((2.0, 3.0, 4.0)):
        raw["runs"][f"math-svf-seed{seed}"]["curves"]["entropy"] = [entropy, entropy / 2, entropy / 4]
    (row,) = collect(raw)["changes"][0]["rows"]
    assert (row["seeds"], row["entropy"]) == (1, [2.0, 0.5])


def test_what_moved_is_shown_by_thirds_of_the_layers(raw):
    (row,) = collect(raw)["changes"][0]["rows"]
    assert row["relative"] == pytest.approx(0.02)
    assert row["thirds"] == [pytest.approx(0.01), None, pytest.approx(0.03)]
    assert (row["stable_rank"], row["effective_rank"], row["diagonal"]) == (2.0, 3.0, 1.0)


def test_an_update_without_a_reward_is_left_out_of_the_picture(raw, tmp_path):
    for run in raw["runs"].values():
        if "curves" in run:
            run["curves"]["reward"][1] = None
    file = tmp_path / "raw.json"
    file.write_text(json.dumps(raw))
    reproduce(file, ReproduceArguments(tmp_path / "out"))
    assert (tmp_path / "out" / "curves.png").is_file()


def test_tables_and_pictures_rise_again_from_the_file(raw, tmp_path, capsys):
    file = tmp_path / "raw.json"
    file.write_text(json.dumps(raw))
    results = reproduce(file, ReproduceArguments(tmp_path / "out"))
    names = {path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".png"}
    assert names == {"fine_tuning.png", "methods.png", "curves.png", "passes.png"}
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| math | LoRA | 0 | | | | out of memory |" in " ".join(report.replace("|  |", "| |").split())
    assert all(f"]({name})" in report for name in names)
    assert "2 answers to each item, sampled at temperature 1, with `shots: 0`" in report
    assert "| less of it | core: top:64 |" in report
    again = reproduce(tmp_path / "out" / "raw.json", ReproduceArguments(tmp_path / "again"))
    assert again == results
    assert (tmp_path / "again" / "report.md").read_text() == report


def test_of_a_run_that_failed_nothing_is_taken_that_an_earlier_one_left(write_comparison, tmp_path):
    """Neither into its own table nor from a probe that is called as the folder of these is."""
    path = write_comparison(experts={"math": QUICKSTART}, unseen=None, probes={"evaluation": {"limit": 1}})
    plan = make_plan(read_comparison(path), tmp_path / "out", ["fine_tuning", "probes"])
    (run,) = plan.runs
    record = Record(0, 0, "", "", "", "", True, 1.0, "", False, 1, True)
    for folder in ("evaluation/math", "probes/evaluation/math"):
        for name in ("base", run.cell.name):
            append_records(plan.out / folder / name / "quickstart-math.jsonl", [record])
    append_records(plan.out / "evaluation/math/base/quickstart-math.jsonl", [replace(record, index=1)])
    found = gather(plan, {run.cell.name: "out of memory"})
    assert found["evaluations"] == {"math": {"base": ["11"]}}
    assert found["probes"][0]["answers"] == {"base": ["1"]}
    assert found["runs"][run.cell.name]["failed"] == "out of memory"


def test_only_the_items_and_samples_that_are_asked_for_count(write_comparison, tmp_path, monkeypatch):
    """An earlier call may have asked for more."""
    probes = {"sampled": {"temperature": 1.0, "samples": 2, "limit": 2}}
    settings = {"experts": {"math": QUICKSTART}, "unseen": None, "probes": probes, "evaluation": {"limit": 3}}
    plan = make_plan(read_comparison(write_comparison(**settings)), tmp_path / "out", ["fine_tuning", "probes"])
    record = Record(0, 0, "", "", "", "", True, 1.0, "", False, 1, True)
    more = [replace(record, index=index, sample=sample) for index in range(4) for sample in range(3)]
    for folder in ("evaluation/math", "probes/sampled/math"):
        append_records(plan.out / folder / "base/quickstart-math.jsonl", more)
    monkeypatch.setattr("svf_rl.reproduce.raw._run", lambda run, failed: {})  # the runs themselves left nothing
    found = gather(plan, {})
    assert found["evaluations"] == {"math": {"base": ["111"]}}
    assert found["probes"][0]["answers"] == {"base": ["11", "11"]}


def test_what_was_trained_in_another_type_is_compared_with_the_base_in_it(write_comparison, tmp_path, monkeypatch):
    """In a cell of its own; the base model that a table shows is that of the first."""
    ablations = {"experts": ["math"], "variants": {"whole": {"adapter": "full", "dtype": "bfloat16"}}}
    path = write_comparison(experts={"math": QUICKSTART}, unseen=None, ablations=ablations)
    plan = make_plan(read_comparison(path), tmp_path / "out", ["fine_tuning", "ablations"])
    first, second = (cell for cell in plan.cells if cell.kind == "evaluation")
    assert (second.name, second.settings["model"]["dtype"]) == ("math-whole-evaluation", "bfloat16")
    assert first.settings["model"]["dtype"] == "float32"
    assert (first.needs, second.needs) == (("math-svf-seed0",), ("math-whole-seed0",))
    assert any("math (whole): trained and compared with the base model in bfloat16" in note for note in plan.notes)
    record = Record(0, 0, "", "", "", "", True, 1.0, "", False, 1, True)
    for cell in (first, second):
        for name in ("base", *cell.needs):
            append_records(cell.folder / name / "quickstart-math.jsonl", [replace(record, correct=cell is first)])
    monkeypatch.setattr("svf_rl.reproduce.raw._run", lambda run, failed: {})  # the runs themselves left nothing
    evaluated = gather(plan, {})["evaluations"]
    first_type = {"base": ["1"], "math-svf-seed0": ["1"]}
    assert evaluated == {"math": {**first_type, "base-whole": ["0"], "math-whole-seed0": ["0"]}}
    evaluated = gather(plan, {first.name: "out of memory"})["evaluations"]
    assert evaluated == {"math": {"base-whole": ["0"], "math-whole-seed0": ["0"]}}
    # the base model in the other type is another model: there is nothing to compare with
    shutil.rmtree(second.folder / "base")
    evaluated = gather(plan, {})["evaluations"]
    assert evaluated == {"math": {**first_type, "base-whole": [], "math-whole-seed0": ["0"]}}


def test_each_difference_is_to_the_base_model_of_the_same_type(raw):
    """The type alone moves a model's answers, and what a text costs it."""
    raw["evaluations"]["math"]["base-other"] = encode(answers(60))
    raw["probes"][0]["methods"] = raw["texts"][0]["methods"] = ["svf", "other"]
    for seed in (0, 1, 2):
        raw["probes"][0]["answers"][f"math-other-seed{seed}"] = encode(answers(65))
        raw["texts"][0]["scores"][f"math-other-seed{seed}"] = [-1.5, -3.0, -1.0]
    raw["probes"][0]["answers"]["base-other"] = encode(answers(55))
    raw["texts"][0]["scores"]["base-other"] = [-1.75, -3.25, -1.0]
    results = collect(raw)
    tables = results["ablations"][0], results["probes"][0], results["texts"][0]
    own, probe, text = ({row["method"]: row for row in table["rows"]} for table in tables)
    assert own["other"]["against_base"]["value"] == pytest.approx(own["other"]["accuracy"] - 0.6)
    assert own["svf"]["against_base"]["value"] == pytest.approx(own["svf"]["accuracy"] - own["base"]["accuracy"])
    assert probe["other"]["against_base"]["value"] == pytest.approx(0.1)
    assert text["other"]["against_base"]["value"] == pytest.approx(0.25)
    raw["evaluations"]["math"]["base-other"] = []  # not made
    assert all("against_base" not in r for r in collect(raw)["ablations"][0]["rows"] if r["method"] == "other")


def test_by_default_they_are_written_beside_the_file_that_is_alone_or_of_a_comparison(raw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "small.json").write_text(json.dumps(raw))
    reproduce(folder / "small.json", ReproduceArguments())
    reproduce(Path("published/raw.json"), ReproduceArguments())
    assert (folder / "report.md").is_file()
    assert list(tmp_path.iterdir()) == [folder]
    (tmp_path / "mine.json").write_text(json.dumps(raw))
    with pytest.raises(SVFError, match="holds files that are not of a comparison"):
        reproduce(tmp_path / "mine.json", ReproduceArguments())


def test_a_file_that_cannot_be_drawn_leaves_the_one_before_as_it_is(raw, tmp_path):
    file, out = tmp_path / "raw.json", tmp_path / "out"
    file.write_text(json.dumps(raw))
    reproduce(file, ReproduceArguments(out))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    less = {key: value for key, value in raw.items() if key != "texts"}
    for content, message in (
        ({**raw, "version": 1}, r"raw\.json is of version 1, and this svf-rl reads 2"),
        (less, r"raw\.json is damaged \(texts is missing or of another type\)"),
        ({**raw, "seeds": None}, r"raw\.json is damaged \(seeds is missing or of another type\)"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(SVFError, match=message):
            reproduce(file, ReproduceArguments(out))
    file.write_text(json.dumps({**raw, "texts": [{}]}))
    with pytest.raises(KeyError):
        reproduce(file, ReproduceArguments(out))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_what_is_no_raw_file_and_what_does_not_go_with_one(raw, tmp_path):
    file = tmp_path / "raw.json"
    file.write_text(json.dumps(raw))
    with pytest.raises(SVFError, match="only --out goes with it"):
        reproduce(file, ReproduceArguments(seeds=[1]))
    file.write_text(json.dumps({**raw, "kind": "other"}))
    with pytest.raises(SVFError, match=r"is not the raw\.json of a comparison"):
        reproduce(file, ReproduceArguments(tmp_path / "out"))
