"""Seeds and methods that were made apart: one comparison from several `raw.json`."""

import json
from copy import deepcopy

import pytest
from recorded import SEEDS

from svf_rl.cli import main
from svf_rl.errors import SVFError
from svf_rl.reproduce.arguments import PARTS, ReproduceArguments
from svf_rl.reproduce.merge import merge
from svf_rl.reproduce.plan import NOT_ADAPTED
from svf_rl.reproduce.results import collect
from svf_rl.reproduce.run import reproduce


@pytest.fixture
def adapted(raw):
    """The comparison with an unseen task, whose base model is asked with the first seed."""
    summary = {"rows": [0, 1], "own_expert": None, "methods": {}}
    seeds = {str(seed): {"answers": {"math": ["10"], "mean": ["11"]}, "summary": summary} for seed in SEEDS}
    seeds["0"]["answers"]["base"] = ["00"]
    adaptation = {"label": "exam", "task": "exam", "seeds": seeds}
    return {**raw, "parts": list(PARTS), "seeds": dict.fromkeys(PARTS, SEEDS), "adaptations": [adaptation]}


def part_of(raw, seeds, methods=None):
    """What a call with these seeds and methods would have gathered."""
    part = deepcopy({**raw, "seeds": dict.fromkeys(raw["seeds"], seeds)})
    gone = {
        name
        for name, run in raw["runs"].items()
        if run["seed"] not in seeds or (methods and run["method"] not in methods)
    }
    part["failed"] = {name: why for name, why in raw["failed"].items() if name not in gone}
    asked = [probe["answers"] for probe in part["probes"]] + [text["scores"] for text in part["texts"]]
    for by_run in [part["runs"], *part["evaluations"].values(), *part["changes"].values(), *asked]:
        for name in gone & by_run.keys():
            del by_run[name]
    for task in part["adaptations"]:
        base = task["seeds"]["0"]["answers"]["base"]
        task["seeds"] = {seed: one for seed, one in task["seeds"].items() if int(seed) in seeds}
        task["seeds"][str(seeds[0])]["answers"]["base"] = base  # each call asks it once
    if methods and "svf" not in methods:
        part |= {"adaptations": [], "probes": [], "texts": [], "changes": {}}
    part["notes"] = [
        "a part of what its folder holds: 9 cells there are not asked for here, such as a",
        NOT_ADAPTED,
        "its own",
    ]
    part["seconds"] = {**part["seconds"], "by_cell": {f"math-svf-seed{seed}": 1.5 for seed in seeds}}
    return part


def test_what_was_made_apart_is_one_comparison(adapted):
    parts = [
        part_of(adapted, [0, 1], ["svf", "less"]),
        part_of(adapted, [2]),
        part_of(adapted, [0, 1], ["other", "lora"]),
    ]
    merged = merge(list(zip("abc", parts, strict=True)))
    assert merged["notes"] == ["its own"]
    merged["notes"] = []
    assert merged["seeds"] == {part: [0, 1, 2] for part in PARTS}
    whole, found = collect(adapted), collect(merged)
    assert found.pop("seconds") != whole.pop("seconds")
    order = [f"math-{method}-seed{seed}" for method in ("svf", "lora", "less", "other") for seed in range(3)]
    assert [run["run"] for run in found["runs"]] == [name for name in order if name in adapted["runs"]]
    for results in (whole, found):
        results["runs"].sort(key=lambda run: run["run"])
    assert found == whole


def test_the_base_model_is_that_of_the_first_file(adapted):
    a, b = part_of(adapted, [0]), part_of(adapted, [1, 2])
    b["evaluations"]["math"]["base"] = ["0" * 100]
    merged = merge([("a", a), ("b", b)])
    assert merged["evaluations"]["math"]["base"] == adapted["evaluations"]["math"]["base"]
    (task,) = merged["adaptations"]
    assert [seed for seed, one in task["seeds"].items() if "base" in one["answers"]] == ["0"]
    (task,) = merge([("b", b), ("a", a)])["adaptations"]
    assert [seed for seed, one in task["seeds"].items() if "base" in one["answers"]] == ["1"]


def test_times_add_up_and_machines_are_listed(raw):
    a, b = part_of(raw, [0]), part_of(raw, [1, 2])
    a["hardware"], b["hardware"] = {"processor": "this"}, {"processor": "that; this"}
    merged = merge([("a", a), ("b", b)])
    assert merged["hardware"] == {"processor": "this; that"}
    assert merged["packages"] == raw["packages"]
    assert merged["seconds"]["cells"] == 2 * raw["seconds"]["cells"]
    assert merged["seconds"]["by_cell"] == {f"math-svf-seed{seed}": 1.5 for seed in range(3)}


def test_one_file_is_left_as_it_is(adapted):
    assert merge([("a", adapted)]) == adapted


def test_what_failed_in_one_file_and_was_made_in_another_is_made(adapted):
    a, b = part_of(adapted, [0, 1]), part_of(adapted, [2])
    run = b["runs"]["math-less-seed2"]
    a["runs"]["math-less-seed2"] = {**run, "failed": "out of memory"}
    a["failed"] |= {"math-less-seed2": "out of memory", "adaptation-seed2": "out of memory", "math-evaluation": "full"}
    a["adaptations"][0]["seeds"]["2"] = {"answers": {}, "summary": None}
    a["texts"][0] |= {"text": None, "tokens": []}
    a["texts"][0]["scores"] = {}
    b["texts"][0]["scores"] = {"base": [-2.0, -4.0, -9.0], "math-svf-seed2": [-2.1, -4.0, -1.0]}
    merged = merge([("a", a), ("b", b)])
    assert merged["runs"]["math-less-seed2"] == run
    # an evaluation is of other runs in each file: that of the second mends nothing
    assert set(merged["failed"]) == {"math-lora-seed0", "math-evaluation"}
    assert merged["adaptations"][0]["seeds"]["2"]["answers"]
    assert collect(merged)["texts"][0]["rows"][1]["by_seed"] == {2: pytest.approx(-3.05)}


def test_what_is_not_one_comparison(adapted):
    first, second = part_of(adapted, [0]), part_of(adapted, [1])
    for other, message in (
        (first, r"math-svf-seed0 is in a\.json and in b\.json: leave one of them out"),
        ({**second, "adaptations": first["adaptations"]}, r"seed 0 of exam is in a\.json and in b\.json: leave"),
        ({**second, "model": "other"}, r"b\.json is of another comparison than a\.json \(model: "),
        ({**second, "lora": {"adapter": "dora"}}, r"b\.json is of another comparison than a\.json \(lora\.adapter: "),
        (
            {**second, "settings": {"math-evaluation": {"evaluation": {"limit": 20}}}},
            r"of other settings in b\.json than in a\.json \(evaluation\.limit: 100 there, 20 here\)",
        ),
    ):
        with pytest.raises(SVFError, match=message):
            merge([("a.json", first), ("b.json", other)])


def test_what_was_not_asked_for_is_no_row(raw):
    part = part_of(raw, [0, 1, 2], ["less"])
    del part["evaluations"]["math"]["base"]
    part["failed"] = {}
    (table,) = collect(part)["ablations"]
    assert [row["method"] for row in table["rows"]] == ["less"]
    part["failed"] = {"math-evaluation": "out of memory"}
    (table,) = collect(part)["ablations"]
    assert [row["method"] for row in table["rows"]] == ["base", "svf", "lora", "less", "other"]


def test_the_command_draws_them_together(adapted, tmp_path):
    files = []
    for seed in SEEDS:
        (tmp_path / f"{seed}").mkdir()
        files.append(tmp_path / f"{seed}" / "raw.json")
        files[-1].write_text(json.dumps(part_of(adapted, [seed])))
    assert main(["reproduce", *map(str, files), "--out", str(tmp_path / "out")]) == 0
    assert "seeds 0, 1, 2" in (tmp_path / "out" / "report.md").read_text().splitlines()[0]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: quickstart")
    for others, out, message in (
        (files[1:], None, "give another --out"),
        (files[1:], files[1].parent, "give another --out"),
        ([recipe], tmp_path / "other", r"recipe\.yaml cannot be put together with others"),
    ):
        with pytest.raises(SVFError, match=message):
            reproduce(files[0], ReproduceArguments(out), others)
    assert not (tmp_path / "other").exists()
    assert json.loads(files[1].read_text())["seeds"]["probes"] == [1]
