"""What next-token training imitates: each task's own first reward grades it right."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from svf_rl.quickstart import SKILLS
from svf_rl.rewards import load_reward
from svf_rl.tasks import TaskOptions, find_task

SAMPLE = 48


def train_rows(name: str, options: TaskOptions) -> Dataset:
    rows = find_task(name).load(options)["train"]
    assert rows is not None
    return rows


def grades(name: str, options: TaskOptions, rows: Dataset, targets: list[str]) -> list[Any]:
    reward = load_reward(find_task(name).rewards(options)[0])
    columns = {column: rows[column][:] for column in rows.column_names if column != "prompt"}
    return reward(completions=[[{"role": "assistant", "content": text}] for text in targets], **columns)


@pytest.mark.parametrize("skill", [*SKILLS, "dispatch"])
@pytest.mark.parametrize("wording", ["standard", "reworded"])
def test_every_row_of_the_quickstart(skill: str, wording: str) -> None:
    options = TaskOptions(skill=skill, wording=wording)
    rows = train_rows("quickstart", options)
    assert len(rows) > 1000
    assert set(grades("quickstart", options, rows, rows["target"][:])) == {1.0}


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        *((name, "default") for name in ("gsm8k", "math", "arc_easy", "arc_challenge", "dispatch")),
        ("arc_easy", "reference"),  # other labels
    ],
)
def test_rows_of_the_benchmarks(name: str, profile: Any, shared_data: Path) -> None:
    options = TaskOptions(data_dir=str(shared_data), profile=profile, train_items=2 * SAMPLE)
    rows = train_rows(name, options)
    assert set(grades(name, options, rows, rows["target"][:])) == {1.0}
    # the control: another row's right answer is hardly ever right
    assert sum(grades(name, options, rows, [*rows["target"][1:], rows["target"][0]])) < 0.5 * len(rows)


@pytest.mark.usefixtures("bubblewrap")
@pytest.mark.parametrize("options", [{}, {"dataset_config": "sanitized"}, {"profile": "reference"}])
def test_programs_of_mbpp(options: dict[str, Any], shared_data: Path) -> None:
    chosen = TaskOptions(data_dir=str(shared_data), train_items=SAMPLE, **options)
    rows = train_rows("mbpp", chosen)
    assert all(target.endswith("\n```") and "\r" not in target for target in rows["target"])
    assert set(grades("mbpp", chosen, rows, rows["target"][:])) == {1.0}


def test_gsm8k_is_solved_in_words_without_notes_for_a_calculator(shared_data: Path) -> None:
    rows = train_rows("gsm8k", TaskOptions(data_dir=str(shared_data)))
    assert "<<" not in "".join(rows["target"])
    assert "<<" in "".join(rows["answer"])


def test_a_mixture_keeps_each_tasks_own(shared_data: Path) -> None:
    mixture = {"quickstart:math": 1, "quickstart:choice": 1, "arc_easy": 1}
    options = TaskOptions(mixture=mixture, data_dir=str(shared_data), train_items=SAMPLE)
    rows = train_rows("mixture", options)
    assert set(grades("mixture", options, rows, rows["target"][:])) == {1.0}
    assert len(set(rows["task"])) == 3


def test_programs_without_a_reference_have_no_target(tmp_path: Path) -> None:
    ids = [*range(11, 14), *range(511, 514), *range(601, 604)]
    rows = [{"task_id": i, "text": f"Write f{i}.", "test_list": [f"assert f{i}()"]} for i in ids]
    Dataset.from_list(rows).to_json(tmp_path / "mbpp.jsonl")
    assert train_rows("mbpp", TaskOptions(data_path=str(tmp_path)))["target"][:] == [None] * 3
