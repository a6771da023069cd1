"""The second bundled model, which half knows when to ask its calculator, is taught to ask it by reinforcement."""

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import read_metrics

from svf_rl.quickstart.skills import make_examples
from svf_rl.quickstart.tool_skill import TOOLS, calc
from svf_rl.train import run

SHORT = [
    "--use_vllm", "false", "--train_items", "512", "--validation_items", "2", "--test_items", "128",
    "--max_steps", "10", "--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false",
    "--disable_tqdm", "true", "--report_to", "none",
]  # fmt: skip


def test_it_learns_to_call_its_tool(tmp_path: Path) -> None:
    """The recipe itself, in 10 steps of 64 episodes."""
    summary = run("quickstart_tools", [*SHORT, "--output_dir", str(tmp_path / "run")])
    assert summary is not None
    assert summary.base_accuracy is not None
    assert summary.accuracy is not None
    assert summary.base_accuracy <= 0.6
    assert summary.accuracy >= 0.85
    steps = [line for line in read_metrics(tmp_path / "run") if "reward" in line]
    assert steps[0]["tools/call_frequency"] < 0.75
    assert steps[-1]["tools/call_frequency"] > 0.85
    card = (tmp_path / "run/README.md").read_text()
    assert "quickstart-tools" in card
    assert "svf-rl eval quickstart-tools" in card
    assert json.loads((tmp_path / "run/summary.json").read_text())["recipe"]["tools"] == [
        "svf_rl.quickstart.tool_skill:calc"
    ]


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_answer_is_that_of_the_calculator(split: str) -> None:
    examples = make_examples(TOOLS.name, split, 200)
    assert len({example.prompt for example in examples}) == 200
    products = 0
    for example in examples:
        digits = "".join(letter if letter.isdigit() else " " for letter in example.prompt).split()
        answers: dict[str, Any] = {sign: calc(sign.join(digits)) for sign in "+-*"}
        assert example.answer in answers.values()
        products += example.answer == answers["*"]
    assert 0.4 < products / 200 < 0.6
