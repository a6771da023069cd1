"""A miniature of the whole command: real training, evaluation and adaptation of the bundled model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from svf_rl.errors import SVFError
from svf_rl.reproduce.arguments import ReproduceArguments
from svf_rl.reproduce.run import reproduce

REPOSITORY = Path(__file__).resolve().parents[2]
QUICKSTART = {"recipe": str(REPOSITORY / "recipes" / "quickstart.yaml")}
WHOLE = {
    "lora": {"adapter": "lora", "lora_r": 8, "learning_rate": 2e-3},
    "dispatch": {**QUICKSTART, "skill": "dispatch"},
    "classes": {"math": "math", "code": "code"},
    "ablations": {"experts": ["math"], "variants": {"no KL": {"beta": 0}}, "shots": [1]},
}


@pytest.mark.vllm
def test_a_miniature_adapts_and_a_second_call_runs_nothing(write_comparison, tmp_path, capsys):
    path, out = write_comparison(classes={"math": "math", "code": "code"}), tmp_path / "out"
    results = reproduce(path, ReproduceArguments(out, only=["adaptation"]))
    (exam,) = results["adaptation"]
    methods = {row["method"]: row for row in exam["rows"]}
    assert set(methods) == {"base", "math", "code", "mean", "prompt", "few-shot-2"}
    for row in methods.values():
        assert row["items"] == 12
        assert row["interval"][0] <= row["accuracy"] <= row["interval"][1]
    # two of three skills have an expert here: no oracle can be named
    assert json.loads((out / "results.json").read_text())["adaptation"][0]["label"] == "exam"
    assert "few-shot, 2 prompts" in (out / "report.md").read_text()
    assert (out / "adaptation/seed0/exam/few-shot-2/adapter/adapter_model.safetensors").is_file()

    capsys.readouterr()
    again = reproduce(path, ReproduceArguments(out, only=["adaptation"]))
    assert again["seconds"]["made_now"] == 0
    assert again["adaptation"] == results["adaptation"]


def accuracies(results):
    """All figures but times."""
    rows = [row for part in ("fine_tuning", "ablations", "adaptation", "shots") for group in results[part]
            for row in group["rows"]]  # fmt: skip
    return [(row["method"], row["accuracy"], row["by_seed"]) for row in rows]


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(1800)
def test_a_killed_comparison_goes_on_and_ends_as_if_it_had_not_been(write_comparison, tmp_path):
    path = write_comparison(**WHOLE, max_steps=6)
    whole = reproduce(path, ReproduceArguments(tmp_path / "whole"))
    out = tmp_path / "killed"
    arguments = f"ReproduceArguments({str(out)!r})"
    imports = "from svf_rl.reproduce.arguments import ReproduceArguments; from svf_rl.reproduce.run import reproduce"
    script = f"{imports}; reproduce({str(path)!r}, {arguments})"
    # in the middle of a training run, and at so many ended cells
    moments = [("runs/*/checkpoint-*", 1), *(("*/*/summary.json", done) for done in (1, 4, 8))]
    for pattern, count in moments:
        call = subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY, start_new_session=True)
        while call.poll() is None and len(list(out.glob(pattern))) < count:
            time.sleep(0.05)
        os.killpg(call.pid, signal.SIGKILL)
        call.wait()
    assert accuracies(reproduce(path, ReproduceArguments(out))) == accuracies(whole)
    assert any("resuming after step" in log.read_text() for log in (out / "logs").glob("*"))


@pytest.mark.slow
@pytest.mark.vllm
def test_a_changed_recipe_is_noticed_and_more_seeds_are_added(write_comparison, tmp_path):
    out = tmp_path / "out"
    first = reproduce(write_comparison(), ReproduceArguments(out, only=["fine_tuning"]))
    changed = write_comparison(max_steps=3)
    with pytest.raises(SVFError, match=r"math-svf-seed0 was made with other settings \(max_steps: 2 there, 3 here\)"):
        reproduce(changed, ReproduceArguments(out, only=["fine_tuning"]))
    more = reproduce(write_comparison(), ReproduceArguments(out, seeds=[0, 1], only=["fine_tuning"]))
    for before, after in zip(first["fine_tuning"], more["fine_tuning"], strict=True):
        svf_before, svf_after = before["rows"][-1], after["rows"][-1]
        assert svf_after["seeds"] == 2
        assert svf_after["by_seed"][0] == svf_before["by_seed"][0]


@pytest.mark.slow
@pytest.mark.vllm
def test_a_run_that_fails_is_in_the_table_and_the_next_call_makes_it(write_comparison, tmp_path):
    data = tmp_path / "data.jsonl"
    rows = [{"question": f"Tom has {n} eggs. He buys 2 more. How many?", "answer": str(n + 2)} for n in range(64)]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    mended = tmp_path / "mended"
    reward = tmp_path / "needs_a_file.py"
    reward.write_text(
        "from pathlib import Path\n"
        "def needs_a_file(completions, **kwargs):\n"
        f"    assert Path({str(mended)!r}).exists()\n"
        "    return [1.0] * len(completions)\n"
    )
    columns = {"task": "columns", "data_path": str(data), "prompt_column": "question", "answer_column": "answer",
               "rewards": ["numeric", f"{reward}:needs_a_file"]}  # fmt: skip
    path = write_comparison(experts={"math": QUICKSTART, "own": {**QUICKSTART, **columns}}, unseen=None)
    with pytest.raises(SVFError, match="could not be made: own-svf-seed0"):
        reproduce(path, ReproduceArguments(tmp_path / "out", only=["fine_tuning"]))
    assert "| SVF | failed |" in (tmp_path / "out" / "report.md").read_text()
    mended.touch()
    results = reproduce(path, ReproduceArguments(tmp_path / "out", only=["fine_tuning"]))
    assert all(row["accuracy"] is not None for group in results["fine_tuning"] for row in group["rows"])


@pytest.mark.slow
def test_a_probe_by_samples_has_pass_at_k(write_comparison, tmp_path):
    path = write_comparison(
        experts={"math": QUICKSTART}, unseen=None, max_steps=1,
        evaluation={"backend": "transformers"}, probes={"sampled": {"temperature": 1.0, "samples": 4, "limit": 6}},
    )  # fmt: skip
    (table,) = reproduce(path, ReproduceArguments(tmp_path / "out", only=["probes"]))["probes"]
    for row in table["rows"]:
        assert row["items"] == 6
        assert list(row["pass_at_k"]) == [1, 2, 4]
        first, second, fourth = (row["pass_at_k"][k][0] for k in (1, 2, 4))
        assert first == pytest.approx(row["accuracy"]) == pytest.approx(row["by_seed"][0])
        assert first <= second <= fourth
    assert "pass@4" in (tmp_path / "out/report.md").read_text()
    drawn_again = reproduce(tmp_path / "out/raw.json", ReproduceArguments(tmp_path / "again"))
    assert drawn_again["probes"] == [table]


@pytest.mark.slow
def test_probes_try_what_was_trained_on_other_rows_and_by_samples(write_comparison, tmp_path):
    probes = {
        "sampled": {"temperature": 1.0, "samples": 4, "limit": 6},
        "reworded": {"options": {"wording": "reworded"}, "experts": {"code": {"shots": 1}}},
        "forgotten": {"others": True, "methods": ["svf"]},
    }
    quick = {"backend": "transformers", "limit": 12}
    path, out = write_comparison(unseen=None, probes=probes, evaluation=quick, max_steps=1), tmp_path / "out"
    results = reproduce(path, ReproduceArguments(out, only=["probes"]))
    tables = {(table["name"], table["expert"], table["task"]): table for table in results["probes"]}
    assert set(tables) == {
        *((name, expert, f"quickstart:{expert}") for name in ("sampled", "reworded") for expert in ("math", "code")),
        ("forgotten", "math", "quickstart:code"),
        ("forgotten", "code", "quickstart:math"),
    }
    for (name, _, _), table in tables.items():
        assert [row["method"] for row in table["rows"]] == ["base", "svf"]
        assert {row["items"] for row in table["rows"]} == {6 if name == "sampled" else 12}
    assert reproduce(path, ReproduceArguments(out, only=["probes"]))["seconds"]["made_now"] == 0
