"""`svf-rl eval` in several turns: the same episodes as those of a training run, recorded, resumed, refused."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from fakes import refused_command

from svf_rl.errors import SVFError
from svf_rl.evaluation.arguments import EvaluationArguments
from svf_rl.evaluation.run import evaluate
from svf_rl.evaluation.summary import Result
from svf_rl.quickstart import model_path
from svf_rl.tasks import TaskOptions
from svf_rl.train import run

CALC = "svf_rl.quickstart.tool_skill:calc"
TASK = "quickstart:tools"
ITEMS = 48
CODE = '''
import random
from pathlib import Path

from svf_rl.quickstart.tool_skill import calc as work_out


class Checked:
    """Says what to do, and whether the calculator was asked for what was wanted."""

    def reset(self, answer, **row):
        self.wanted, self.found = answer, False
        return random.choice([" Now.", " Soon."])

    def calc(self, sum: str) -> str:
        """
        Work out.

        Args:
            sum: Such as 12*34.
        """
        result = work_out(sum)
        self.found = result == self.wanted
        return result

    def get_reward(self) -> float:
        return float(self.found)


class Broken(Checked):
    def get_reward(self):
        raise KeyError("gone")


class Board(Checked):
    """Plays with its row."""

    def reset(self, cells, **row):
        self.cells, self.began = cells, len(cells)

    def calc(self, sum: str) -> str:
        """
        Take a cell.

        Args:
            sum: Any.
        """
        return self.cells.pop()

    def get_reward(self):
        self.cells.clear()
        return float(self.began == 3)


class Down(Checked):
    """Until there is a file `up`, for every other row."""

    def reset(self, answer, **row):
        if int(answer) % 2 and not Path("up").exists():
            raise ConnectionError("service is down")
        return super().reset(answer, **row)


class Silent(Checked):
    get_reward = None


def asked(completions, environments, **_):
    return [float(len(messages) > 1) for messages in completions]
'''


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The working directory, with `worlds.py`."""
    path = tmp_path_factory.mktemp("tools")
    (path / "worlds.py").write_text(CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        yield path


def graded(out: str, label: str = "base", **given: Any) -> tuple[list[Result], list[dict[str, Any]]]:
    """The results, and what was recorded of a model."""
    settings = {"backend": "transformers", "limit": ITEMS, "max_tokens": 64, "out": out, **given}
    results = evaluate(EvaluationArguments("quickstart-tools", [TASK], **settings))
    return results, [json.loads(line) for line in Path(out, label, "quickstart-tools.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(folder: Path) -> Any:
    """A short run with the calculator, and what it said of itself."""
    summary = run(
        "quickstart_tools",
        [
            "--use_vllm", "false", "--train_items", "64", "--validation_items", "2", "--test_items", str(ITEMS),
            "--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false",
            "--learning_rate", "3e-2", "--disable_tqdm", "true", "--report_to", "none", "--output_dir", "run",
        ],
    )  # fmt: skip
    assert summary is not None
    return summary


@pytest.mark.parametrize("backend", ["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
def test_the_accuracy_is_that_of_the_training_run(trained: Any, backend: str) -> None:
    results, records = graded(
        f"same-{backend}", "run", backend=backend, tools=[CALC], adapters=["run"], max_tool_calling_iterations=3,
        enforce_eager=True,
    )  # fmt: skip
    base, adapted = results
    assert trained.base_accuracy != trained.accuracy
    assert base.accuracy.value == pytest.approx(trained.base_accuracy)
    assert adapted.accuracy.value == pytest.approx(trained.accuracy)
    assert len(records) == ITEMS


def test_a_record_holds_all_that_was_said() -> None:
    _, records = graded("said", tools=CALC)
    called = [record for record in records if len(record["messages"]) == 4]
    assert 0 < len(called) < ITEMS
    for record in called:
        asked, call, answer, last = record["messages"]
        assert asked["role"] == "user"
        assert asked["content"] in record["prompt"]
        assert call["tool_calls"][0]["function"]["name"] == "calc"
        assert answer == {"role": "tool", "name": "calc", "content": record["extracted"]}
        assert last == {"role": "assistant", "content": record["completion"]}
        assert record["tokens"] > len(record["completion"].split())  # calls count too


def test_without_turns_after_the_first_nothing_is_called() -> None:
    (result,), records = graded("few", tools=[CALC], max_tool_calling_iterations=1, max_tokens=12)
    assert all(len(record["messages"]) == 2 or not record["finished"] for record in records)
    assert result.accuracy.value < 0.3


def test_a_second_call_plays_nothing_again_and_other_tools_are_refused(capsys: Any) -> None:
    arguments = ("eval", "quickstart-tools", "--tasks", TASK, "--backend", "transformers", "--limit", "4", "--out", "o")
    graded("o", tools=[CALC], limit=4, max_tokens=None)
    (again,), records = graded("o", tools=[CALC], limit=4, max_tokens=None)
    assert again.reused == 4
    assert all(record["messages"] for record in records)
    (Path("others.py")).write_text("from svf_rl.quickstart.tool_skill import calc\n")
    said = refused_command(capsys, *arguments, "--tools", "others.py:calc")
    assert 'made with other settings (tools: ["svf_rl.quickstart.tool_skill:calc"] there, ["others.py:calc"]' in said
    said = refused_command(capsys, *arguments, "--tools", CALC, "--seed", "1")
    assert "seed: 0 there, 1 here" in said  # greedy answers too: tools and environments may draw from it
    said = refused_command(capsys, *arguments, "--tools", CALC, "--tool-timeout", "5")
    assert "tool_timeout: 30.0 there, 5.0 here" in said


def test_answers_that_an_earlier_file_of_a_tool_helped_with_are_refused() -> None:
    tool = Path("mine.py")
    source = 'def double(number: int) -> int:\n    """Double.\n\n    Args:\n        number: any."""\n'
    tool.write_text(source)
    settings = {"tools": ["mine.py:double"], "limit": 1, "max_tokens": 2}
    graded("mine", **settings)
    tool.write_text(source + "    return 2 * number\n")
    with pytest.raises(SVFError, match=r"made with other settings \(tools_sha256.mine.py:double: "):
        graded("mine", **settings)


def test_an_environment_grades_and_its_words_are_read() -> None:
    (result,), records = graded("world", environment="worlds.py:Checked")
    told = [[m["content"] for m in record["messages"] if m["role"] == "tool"] for record in records]
    found = [bool(said) and said[-1] == record["reference"] for said, record in zip(told, records, strict=True)]
    assert 0 < sum(found) < ITEMS
    assert [record["correct"] for record in records] == found
    assert result.accuracy.value == sum(found) / ITEMS
    first = [record["messages"][0]["content"] for record in records]
    assert {words.rpartition(" ")[2] for words in first} == {"Now.", "Soon."}
    assert not any("Now." in record["prompt"] for record in records)
    state = random.getstate()
    _, again = graded("world-again", environment="worlds.py:Checked")
    assert again == records  # what it draws is its own
    assert random.getstate() == state


def test_a_reward_that_is_given_goes_before_that_of_the_environment() -> None:
    _, verified = graded("verified", environment="worlds.py:Checked", reward="numeric")
    assert all(record["extracted"] is not None for record in verified if record["correct"])
    _, called = graded("called", environment="worlds.py:Checked", reward="worlds.py:asked")
    assert {record["score"] for record in called} == {0.0, 1.0}
    _, own = graded("silent", environment="worlds.py:Silent")
    assert [r["correct"] for r in own] == [r["correct"] for r in verified]  # the task's


def test_where_an_environment_fails_the_item_is_not_scorable() -> None:
    (result,), records = graded("broken", environment="worlds.py:Broken", limit=4)
    assert all(record["reason"].startswith("Broken.get_reward raised KeyError: 'gone'") for record in records)
    assert result.not_scorable == 4


def test_the_next_call_plays_again_what_had_failed(folder: Path) -> None:
    settings = {"environment": "worlds.py:Down", "limit": 8, "out": "down"}
    (result,), records = graded(**settings)
    down = sum(record["reason"].startswith("Down.reset raised ConnectionError") for record in records)
    assert 0 < down == result.not_scorable < 8
    (folder / "up").touch()
    (result,), _ = graded(**settings)
    assert (result.not_scorable, result.reused) == (0, 8 - down)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_each_episode_has_a_row_of_its_own(folder: Path, trained: Any, batch_size: int) -> None:
    """Whatever those before it, of the same item or of another model, have made of theirs."""
    rows = [{"prompt": f"What is 1{i} times 12?", "cells": ["a", "b", "c"]} for i in range(2)]
    (folder / "boards.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = evaluate(
        EvaluationArguments(
            "quickstart-tools", ["columns"], options=TaskOptions(data_path="boards.jsonl"), adapters=["run"],
            environment="worlds.py:Board", backend="transformers", max_tokens=64, samples=2, batch_size=batch_size,
            out=f"boards-{batch_size}",
        )
    )  # fmt: skip
    assert [result.accuracy.value for result in results] == [1.0, 1.0]


def test_an_environment_has_as_much_room_as_it_is_given() -> None:
    _, records = graded("roomy", environment="worlds.py:Checked", limit=2)
    longest = max(len(record["prompt"]) for record in records)
    (result,), _ = graded("tight", environment="worlds.py:Checked", limit=2, max_model_length=longest // 100 + 1)
    assert result.not_scorable == 2
    with pytest.raises(SVFError, match="--max-model-length is for environments"):
        graded("other", tools=[CALC], max_model_length=64)


def test_several_environments_by_a_column(folder: Path) -> None:
    rows = [
        {"prompt": f"What is 1{i} times 12?", "answer": str((10 + i) * 12), "environment": name}
        for i, name in enumerate(["good", "bad"] * 3)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    worlds = {"good": "worlds.py:Checked", "bad": "worlds.py:Broken"}
    evaluate(
        EvaluationArguments(
            "quickstart-tools", ["columns"], options=TaskOptions(data_path="rows.jsonl"), environment=worlds,
            backend="transformers", max_tokens=64, out="several",
        )
    )  # fmt: skip
    records = [json.loads(line) for line in Path("several/base/columns.jsonl").read_text().splitlines()]
    assert [record["correct"] for record in records] == [True, None] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "takes a calculator: svf-rl eval quickstart-tools --tools"),
        (["--tools", "pyton"], "tools: unknown tool 'pyton'; did you mean 'python'?"),
        (["--tools", "worlds.py:nothing"], "worlds.py"),
        (["--tools", f"{CALC},{CALC}"], "tools: two are named calc"),
        (["--environment", "worlds.py:asked"], "environment_factory could not be made: it raised"),
        (["--environment", "{a: worlds.py:Checked}"], "has no column 'environment', which says which of --environment"),
        (["--tools", CALC, "--max-tool-calling-iterations", "0"], "--max-tool-calling-iterations must be at least 1"),
        (["--max-tool-calling-iterations", "2"], "is for tools: give --tools or --environment too"),
        (["--tools", CALC, "--tool-timeout", "0"], "--tool-timeout must be above 0"),
    ],
)  # fmt: skip
def test_one_line(capsys: Any, options: list[str], message: str) -> None:
    said = refused_command(
        capsys, "eval", "quickstart-tools", "--tasks", TASK, "--backend", "transformers", "--out", "new", *options
    )
    assert message in said
    assert not Path("new").exists()


def test_a_model_that_was_not_made_for_tools(capsys: Any) -> None:
    shutil.copytree(model_path(), "plain")
    Path("plain/chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
    )
    said = refused_command(capsys, "eval", "plain", "--tasks", TASK, "--tools", CALC, "--out", "new")
    assert "the chat template of plain shows no calls of tools" in said


def test_the_card_of_a_run_says_how_to_evaluate_it(trained: Any) -> None:
    card = Path("run/README.md").read_text()
    assert f"--tasks {TASK} --tools {CALC} --max-tool-calling-iterations 3 --max-tokens 64" in card
