"""`svf-rl eval` on the bundled model, with vLLM and with transformers."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from svf_rl.cli import main
from svf_rl.evaluation.adapters import Adapter
from svf_rl.evaluation.arguments import EvaluationArguments
from svf_rl.evaluation.run import _note_training_rows, evaluate
from svf_rl.evaluation.summary import Result
from svf_rl.evaluation.table import table
from svf_rl.tasks import TaskOptions

ITEMS = 32


def records(out: Path, label: str, task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / label / f"{task}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def side_by_side(
    svf_adapter: Path, lora_adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Result]]:
    """The base, an SVF and a LoRA adapter in one call and one vLLM engine."""
    out = tmp_path_factory.mktemp("evaluation") / "out"
    results = evaluate(
        EvaluationArguments(
            "quickstart", ["quickstart:math", "quickstart:choice"], [str(svf_adapter), str(lora_adapter)],
            limit=ITEMS, out=str(out), enforce_eager=True,
        )
    )  # fmt: skip
    return out, results


def plain_greedy(adapter: Path | None, skill: str) -> list[str]:
    """What a loop over the items, one at a time and without this package's generation, answers."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from svf_rl.quickstart import make_rows, model_path

    tokenizer = AutoTokenizer.from_pretrained(model_path())
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    answers = []
    for row in make_rows(skill, "test", 512)[:ITEMS]:
        chat = [{"role": "user", "content": row["prompt"]}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        output = model.generate(input_ids=ids, max_new_tokens=512, do_sample=False)
        answers.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    return answers


@pytest.mark.vllm
@pytest.mark.parametrize("label", ["base", "svf", "lora"])
@pytest.mark.parametrize("skill", ["math", "choice"])
def test_greedy_answers_are_those_of_a_plain_loop(
    side_by_side: tuple[Path, list[Result]], svf_adapter: Path, lora_adapter: Path, label: str, skill: str
) -> None:
    """One adapter after another in one engine, none with the weights of the one before."""
    from svf_rl.rewards import verify_all

    out, results = side_by_side
    answers = plain_greedy({"base": None, "svf": svf_adapter, "lora": lora_adapter}[label], skill)
    got = records(out, label, f"quickstart-{skill}")
    assert [r["index"] for r in got] == list(range(ITEMS))
    same = [r["completion"] == answer for r, answer in zip(got, answers, strict=True)]
    assert sum(same) >= ITEMS - 1  # a near-tie may fall to the other side
    verifier = {"math": "numeric", "choice": "choice"}[skill]
    correct = [v.correct for v in verify_all(verifier, answers, [r["reference"] for r in got])]
    (result,) = [r for r in results if (r.label, r.task) == (label, f"quickstart:{skill}")]
    assert result.accuracy.value == pytest.approx(sum(correct) / ITEMS, abs=1 / ITEMS)


@pytest.mark.vllm
def test_the_adapters_differ_and_are_tested_against_the_base(side_by_side: tuple[Path, list[Result]]) -> None:
    out, results = side_by_side
    assert [(r.task.split(":")[1], r.label) for r in results] == [
        ("math", "base"), ("math", "svf"), ("math", "lora"), ("choice", "base"), ("choice", "svf"), ("choice", "lora"),
    ]  # fmt: skip
    completions = {
        label: [r["completion"] for r in records(out, label, "quickstart-math")] for label in ("base", "svf", "lora")
    }
    assert completions["base"] != completions["svf"] != completions["lora"] != completions["base"]
    assert results[0].against_base is None
    for result in results[1:3]:
        correct = {
            label: [r["correct"] for r in records(out, label, "quickstart-math")] for label in ("base", result.label)
        }
        pairs = list(zip(correct["base"], correct[result.label], strict=True))
        assert result.against_base is not None
        assert (result.against_base.gained, result.against_base.lost) == (
            pairs.count((False, True)),
            pairs.count((True, False)),
        )


@pytest.mark.vllm
def test_the_summary_file_says_what_the_call_returned(side_by_side: tuple[Path, list[Result]]) -> None:
    out, results = side_by_side
    summary = json.loads((out / "summary.json").read_text())
    assert summary["results"] == json.loads(json.dumps([result.to_dict() for result in results]))
    assert list(summary["adapters"]) == ["svf", "lora"]


@pytest.mark.vllm
def test_a_second_call_generates_nothing(
    side_by_side: tuple[Path, list[Result]], svf_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = side_by_side
    monkeypatch.setattr("svf_rl.evaluation.run.ExpertPool", None)  # building one fails
    again = evaluate(
        EvaluationArguments(
            "quickstart", ["quickstart:math"], [str(svf_adapter)], limit=ITEMS - 8, out=str(out), enforce_eager=True
        )
    )
    assert [r.reused for r in again] == [ITEMS - 8] * 2


def test_the_table_lines_up(tmp_path: Path) -> None:
    arguments = {"limit": 4, "backend": "transformers", "out": str(tmp_path / "out")}
    results = evaluate(
        EvaluationArguments("quickstart", ["quickstart:math", "quickstart:choice"], samples=3, **arguments)
    )
    lines = table(results).splitlines()
    assert lines[0].split()[:4] == ["task", "model", "metric", "value"]
    assert [line.split()[:3] for line in lines[2::2]] == [
        [f"quickstart:{s}", "base", "accuracy"] for s in ("math", "choice")
    ]
    assert [line.split()[0] for line in lines[3::2]] == ["pass@3", "pass@3"]
    values = [line[: lines[0].index("value") + len("value")].split()[-1] for line in lines[2:]]
    assert all(0 <= float(value) <= 1 for value in values)


def test_samples_are_reproducible_and_differ_from_one_another(tmp_path: Path) -> None:
    def completions(out: str, seed: int) -> list[str]:
        evaluate(
            EvaluationArguments(
                "quickstart", ["quickstart:math"], limit=6, samples=4, temperature=1.0, seed=seed,
                out=str(tmp_path / out), backend="transformers",
            )
        )  # fmt: skip
        return [r["completion"] for r in records(tmp_path / out, "base", "quickstart-math")]

    first = completions("a", 1)
    assert len(first) == 24
    assert completions("b", 1) == first
    assert completions("c", 2) != first
    assert any(len(set(first[i : i + 4])) > 1 for i in range(0, 24, 4))


def test_after_kill_9_a_second_call_goes_on_and_gives_the_same_files(
    tmp_path: Path, save_adapter: Callable[..., Path]
) -> None:
    adapter = save_adapter("svf", by=0.1, name="killed")
    arguments: dict[str, Any] = {"limit": 96, "batch_size": 4, "backend": "transformers"}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    first = evaluate(
        EvaluationArguments("quickstart", ["quickstart:math"], [str(adapter)], out=str(whole), **arguments)
    )
    command = [sys.executable, "-m", "svf_rl.cli", "eval", "quickstart", "--tasks", "quickstart:math",
               "--adapter", str(adapter), "--limit", "96", "--batch-size", "4", "--backend", "transformers",
               "--out", str(cut)]  # fmt: skip
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    file = cut / "killed" / "quickstart-math.jsonl"
    deadline = time.monotonic() + 120
    while not (file.is_file() and file.stat().st_size > 1000):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.wait()
    at_the_kill = file.read_bytes()
    assert 0 < len(at_the_kill) < (whole / "killed" / file.name).stat().st_size
    assert not (cut / "summary.json").exists()
    with file.open("ab") as torn:  # as the kill may leave it in the middle of a write
        torn.write(b'{"index": 95, "samp')
    second = evaluate(EvaluationArguments("quickstart", ["quickstart:math"], [str(adapter)], out=str(cut), **arguments))
    for label in ("base", "killed"):
        assert (cut / label / file.name).read_bytes() == (whole / label / file.name).read_bytes()
    assert [result.reused for result in second] == [96, at_the_kill.count(b"\n")]
    assert [replace(r, seconds=0, reused=0) for r in first] == [replace(r, seconds=0, reused=0) for r in second]


@pytest.mark.usefixtures("bubblewrap")
@pytest.mark.parametrize("task", ["gsm8k", "math", "arc_easy", "arc_challenge", "mbpp", "humaneval"])
def test_real_rows(shared_data: Path, tmp_path: Path, task: str) -> None:
    (result,) = evaluate(
        EvaluationArguments(
            "quickstart", [task], options=TaskOptions(data_dir=str(shared_data)), limit=8, max_tokens=16,
            out=str(tmp_path / "out"), backend="transformers",
        )
    )  # fmt: skip
    assert (result.items, result.not_scorable) == (8, 0)
    assert all(r["reason"] for r in records(tmp_path / "out", "base", task))


def test_ones_own_file_is_evaluated_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from svf_rl.quickstart import make_rows

    rows = [{"question": row["prompt"], "gold": row["answer"]} for row in make_rows("math", "test", 10)]
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    command = ["eval", "quickstart", "--tasks", "columns", "--data-path", str(data), "--prompt-column", "question",
               "--answer-column", "gold", "--reward", "numeric", "--backend", "transformers",
               "--out", str(out)]  # fmt: skip
    assert main(command) == 0
    assert len(records(out, "base", "columns")) == 10
    assert "columns" in capsys.readouterr().out


def test_rows_that_an_adapter_was_trained_on_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "mine.jsonl"
    data.write_text("")
    (tmp_path / "summary.json").write_text(json.dumps({"recipe": {"task": "columns", "data_path": str(data)}}))
    adapter = Adapter("mine", tmp_path, "")
    _note_training_rows([adapter], EvaluationArguments("m", ["columns"], options=TaskOptions(data_path=str(data))))
    assert "mine was trained on rows of" in capsys.readouterr().err
    _note_training_rows([adapter], EvaluationArguments("m", ["columns"], options=TaskOptions(data_path="other.jsonl")))
    assert capsys.readouterr().err == ""


def test_what_an_async_reward_keeps_goes_on_from_batch_to_batch(tmp_path: Path) -> None:
    """Such as a client of a judge, which belongs to an event loop."""
    (tmp_path / "judge.py").write_text(
        "import asyncio\n"
        "at_once = asyncio.Semaphore(2)\n"
        "async def ask(completion):\n"
        "    async with at_once:\n"
        "        await asyncio.sleep(0.001)\n"
        "    return 1.0\n"
        "async def judged(completions, **kwargs):\n"
        "    return await asyncio.gather(*map(ask, completions))\n"
    )
    (result,) = evaluate(
        EvaluationArguments(
            "quickstart", ["quickstart:math"], reward=f"{tmp_path / 'judge.py'}:judged", limit=24, batch_size=8,
            out=str(tmp_path / "out"), backend="transformers", max_tokens=2,
        )
    )  # fmt: skip
    assert (result.accuracy.value, result.items) == (1.0, 24)


def test_a_plain_reward_function_grades_too(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def short(completions, prompts, answer, log_metric, **kwargs):\n"
        "    log_metric('seen', 1.0)\n"
        "    values = [len(c[0]['content']) < 22 for c in completions]\n"
        "    return [None if i == 0 else float(v) for i, v in enumerate(values)]\n"
    )
    (result,) = evaluate(
        EvaluationArguments(
            "quickstart", ["quickstart:math"], reward=f"{tmp_path / 'mine.py'}:short", limit=8, batch_size=8,
            out=str(tmp_path / "out"), backend="transformers",
        )
    )  # fmt: skip
    got = records(tmp_path / "out", "base", "quickstart-math")
    assert result.not_scorable == 1
    assert got[0]["correct"] is None
    assert [r["correct"] for r in got[1:]] == [len(r["completion"]) < 22 for r in got[1:]]
