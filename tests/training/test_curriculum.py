"""A curriculum: rows of the next level when the accuracy on one is high enough, also in a run that resumes."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from fakes import refusal

from svf_rl.errors import SVFError
from svf_rl.tasks import TaskOptions, find_task
from svf_rl.tasks.reasoning_gym import LEVEL
from svf_rl.training.curriculum import Curriculum


def _rows(levels: int = 3, each: int = 8) -> Dataset:
    rows = [{"prompt": f"{level} {i}", LEVEL: level} for level in range(levels) for i in range(each)]
    return Dataset.from_list(rows)


def _curriculum() -> Curriculum:
    return Curriculum(_rows(), accuracy=0.75, updates=2, threshold=0.5)


def test_rows_of_other_levels_are_replaced_by_the_same_one_for_the_same_prompt() -> None:
    curriculum, rows = _curriculum(), list(_rows())
    taken = curriculum.at_level(rows)
    assert {row[LEVEL] for row in taken} == {0}
    assert taken[:8] == rows[:8]
    assert curriculum.at_level(rows[::-1]) == taken[::-1]


def test_rows_need_no_prompt_where_an_environment_makes_it() -> None:
    rows = _rows().rename_column("prompt", "word")
    curriculum = Curriculum(rows, accuracy=0.75, updates=2, threshold=0.5)
    taken = curriculum.at_level(list(rows))
    assert {row[LEVEL] for row in taken} == {0}
    assert curriculum.at_level(list(rows)[::-1]) == taken[::-1]


@pytest.mark.parametrize("level", ["0", None])
def test_a_level_is_a_number(level: str | None) -> None:
    rows = Dataset.from_list([{"prompt": "a", LEVEL: level}])
    said = refusal(lambda: Curriculum(rows, accuracy=0.75, updates=2, threshold=0.5))
    assert said == f"training row 0: {LEVEL} must be a number, not {level!r}"


def test_the_next_level_comes_when_the_mean_over_some_updates_is_high_enough() -> None:
    curriculum, right, half = _curriculum(), torch.ones(4), torch.tensor([1.0, 1, 0, torch.nan, 0])
    levels = []
    for rewards in (right, half, half, right, right, right, half, right, right, right, right):
        curriculum.take(rewards)
        levels.append(curriculum.level)
    #                right + half = .75, then two updates of the new level, … the last level stays
    assert levels == [0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2]


def test_what_checkpoints_keep_is_all_it_knows() -> None:
    first, second = _curriculum(), _curriculum()
    first.take(torch.ones(4))
    for name, value in first.state()["attributes"].items():
        setattr(second, name, value)
    for curriculum in (first, second):
        curriculum.take(torch.ones(4))
    assert first.level == second.level == 1


def _train(make_trainer, scripted, steps: int, seen: list, **settings: object):
    def note(prompts: list, **_: object) -> list[float]:
        seen.append(sorted({int(prompt.split()[0]) for prompt in prompts}))
        return [1.0] * len(prompts)

    trainer = make_trainer(
        generator=scripted(),
        reward=note,
        train_rows=_rows(),
        max_steps=steps,
        curriculum_updates=2,
        logging_steps=1,
        **settings,
    )
    trainer.train("auto")
    return trainer


def test_a_trainer_goes_from_level_to_level(make_trainer, scripted) -> None:
    seen: list = []
    trainer = _train(make_trainer, scripted, 6, seen)
    assert seen == [[0], [0], [1], [1], [2], [2]]
    assert [line["curriculum/level"] for line in trainer.state.log_history if "curriculum/level" in line] == [
        0, 0, 1, 1, 2, 2,
    ]  # fmt: skip


def test_a_run_that_resumes_goes_on_at_its_level(make_trainer, scripted, tmp_path: Path) -> None:
    whole: list = []
    _train(make_trainer, scripted, 6, whole)
    parts: list = []
    run = {"output_dir": str(tmp_path / "run"), "save_strategy": "steps", "save_steps": 1}
    _train(make_trainer, scripted, 3, parts, **run)
    trainer = _train(make_trainer, scripted, 6, parts, **run)
    assert parts == whole
    assert trainer.curriculum.level == 2


def test_it_is_the_same_level_with_another_patience(make_trainer, scripted, tmp_path: Path) -> None:
    """Which a run that resumes may have, and which is a callback with a state too."""

    def train(**settings: object):
        trainer = make_trainer(
            generator=scripted(), reward=lambda prompts, **_: [1.0] * len(prompts), train_rows=_rows(), eval_items=2,
            curriculum_updates=2, output_dir=str(tmp_path / "run"), save_strategy="steps", save_steps=1,
            eval_strategy="steps", eval_steps=1, load_best_model_at_end=True, metric_for_best_model="eval_accuracy",
            **settings,
        )  # fmt: skip
        trainer.train("auto")
        return trainer.curriculum.level

    assert train(max_steps=3) == 1
    assert train(max_steps=4, early_stopping_patience=9) == 2
    assert train(max_steps=5) == 2


def test_a_task_has_training_rows_of_each_level_and_others_of_the_last() -> None:
    pytest.importorskip("reasoning_gym", reason="pip install 'svf-rl[reasoning]'")
    options = TaskOptions(
        dataset="word_sequence_reversal", curriculum={"min_words": [2, 4], "max_words": [2, 4]},
        train_items=6, validation_items=3, test_items=3, shots=1,
    )  # fmt: skip
    splits = find_task("reasoning_gym").load(options)
    words = {
        split: [prompt[-1]["content"].rsplit(":", 1)[1].count(",") + 1 for prompt in rows["prompt"]]
        for split, rows in splits.items()
    }
    assert set(words["test"]) == set(words["validation"]) == {4}
    assert [2 if level == 0 else 4 for level in splits["train"][LEVEL]] == words["train"]
    assert set(words["train"]) == {2, 4}


def test_levels_that_overlap_share_no_question() -> None:
    pytest.importorskip("reasoning_gym", reason="pip install 'svf-rl[reasoning]'")
    options = TaskOptions(
        dataset="word_sorting", curriculum={"min_words": [2, 2], "max_words": [2, 3]}, train_items=200, test_items=9
    )
    splits = find_task("reasoning_gym").load(options)
    train = splits["train"]
    assert len({prompt[-1]["content"] for prompt in train["prompt"]}) == len(train) == 200
    assert train[LEVEL][:] == [0, 1] * 100
    # the first level and what is not trained on are those of the same settings without a curriculum
    for level, split in ((2, "train"), (3, "validation"), (3, "test")):
        config = {"min_words": 2, "max_words": level}
        alone = find_task("reasoning_gym").load(TaskOptions(dataset="word_sorting", config=config))[split]
        rows = train.select(range(0, 200, 2)) if split == "train" else splits[split]
        assert rows["prompt"][:] == alone["prompt"][: len(rows)]


@pytest.mark.parametrize("curriculum", [{"min_words": [2]}, {"min_words": [2, 3], "max_words": [2]}, {"min_words": 2}])
def test_levels_of_all_settings_are_as_many(curriculum: dict) -> None:
    with pytest.raises(SVFError, match="a list of at least two values for each setting, all of one length"):
        find_task("reasoning_gym").load(TaskOptions(dataset="word_sorting", curriculum=curriculum))


def test_next_token_training_has_no_accuracy_to_go_by(make_trainer, scripted, tmp_path: Path) -> None:
    from svf_rl.training.next_token import NextTokenTrainer

    said = refusal(
        make_trainer, generator=scripted(), train_rows=_rows(), trainer_class=NextTokenTrainer, objective="next_token"
    )
    assert "a curriculum goes by rewards" in said
