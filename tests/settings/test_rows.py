"""Rows are checked before weights are loaded: columns, answers and prompts, with the row of the user's file."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fakes import refusal

from svf_rl.quickstart import model_path
from svf_rl.settings.dry_run import DryRun, check_recipe
from svf_rl.settings.recipe import load_recipe


@pytest.fixture
def plan(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The dry run of the quickstart recipe with these rows as `rows.jsonl` and these keys."""
    monkeypatch.chdir(tmp_path)

    def plan(rows: list[dict[str, Any]], **keys: Any) -> DryRun:
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        overrides = {
            "task": "columns", "data_path": "rows.jsonl", "rewards": "numeric", "train_items": None,
            "validation_items": None, "test_items": None, "per_device_train_batch_size": 8, "use_vllm": False, **keys,
        }  # fmt: skip
        arguments = [f"--{key}={json.dumps(value)}" for key, value in overrides.items()]
        return check_recipe(load_recipe(repository / "recipes" / "quickstart.yaml", arguments))

    return plan


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the bundled model's folder, to change files in."""
    return Path(shutil.copytree(model_path(), tmp_path / "model"))


def rows(count: int = 40, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"What is {i} + 1?", "answer": str(i + 1), **more} for i in range(count)]


@pytest.mark.parametrize("bad", range(0, 40, 7))
def test_a_bad_answer_is_named_by_its_row_in_the_file_whichever_split_it_falls_in(plan, bad: int) -> None:
    own = rows()
    own[bad]["answer"] = "many"
    message = refusal(plan, own)
    assert message.startswith(f"rows.jsonl, row {bad}: ")
    assert message.endswith("(column 'answer')")


def test_a_bad_answer_is_named_by_the_columns_own_name(plan) -> None:
    own = [{"prompt": row["prompt"], "gold": row["answer"]} for row in rows()]
    own[3]["gold"] = ""
    message = refusal(plan, own, answer_column="gold")
    assert message.startswith("rows.jsonl, row 3: ")
    assert message.endswith("(column 'gold')")


def test_a_target_to_imitate_is_named_by_its_row_too(plan) -> None:
    own = rows(target="2")
    for row in (3, 8, 11, 25):  # not all of them are held out
        own[row]["target"] = " "
    message = refusal(plan, own, objective="next_token")
    assert message.split(": ")[0] in [f"rows.jsonl, row {row}" for row in (3, 8, 11, 25)]


@pytest.mark.parametrize("name", ["prompts", "completions", "completion_ids", "self", "trainer_state", "log_extra"])
def test_a_column_with_the_name_of_what_rewards_are_given(plan, name: str) -> None:
    assert f"column {name!r} of the data has the name of what rewards are given" in refusal(plan, rows(**{name: "x"}))


@pytest.mark.parametrize("name", ["image", "images"])
def test_columns_of_images(plan, name: str) -> None:
    assert refusal(plan, rows(**{name: "a.png"})) == (
        f"column {name!r} of the data: images are not supported: remove the column"
    )


def test_prompts_without_room_for_an_answer_are_named_or_left_out_and_counted(plan) -> None:
    own = rows()
    for row in (4, 17, 30):
        own[row]["prompt"] = "How many? " * 1000 * (2 if row == 17 else 1)
    message = refusal(plan, own)
    assert "prompts leave no room for max_completion_length (48) within the model's positions (2048)" in message
    assert message.startswith("rows.jsonl, row ")
    assert "drop_long_prompts: true leaves such rows out" in message
    planned = plan(own, drop_long_prompts=True)
    assert sum(planned.rows.values()) == 37
    left_out = [note for note in planned.notes if "left out" in note]
    assert sum(int(note.split(": ")[1].split()[0]) for note in left_out) == 3


def test_the_limit_of_vllm_is_named_where_it_is_the_lower_one(plan) -> None:
    own = rows()
    own[0]["prompt"] = "How many? " * 100
    message = refusal(plan, own, use_vllm=True, vllm_max_model_length=128)
    assert "leave no room for an answer within vllm_max_model_length (128)" in message


def test_prompts_that_are_all_too_long_cannot_be_left_out(plan) -> None:
    own = [{**row, "prompt": "How many? " * 1000} for row in rows()]
    assert "no train rows are left" in refusal(plan, own, drop_long_prompts=True)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('no thanks') }}", "no thanks"),
        ("{{ messages[0].nothing.more }}", "nothing"),
        ("{{ 1 // (messages | length - messages | length) }}", "zero"),
        ("{{ messages + 1 }}", "concatenate"),
        ("{% for message in messages %}", "end of template"),
    ],
)
def test_a_template_that_fails_is_one_line_with_the_row(plan, model: Path, template: str, said: str) -> None:
    (model / "chat_template.jinja").write_text(template)
    message = refusal(plan, rows(), model_name_or_path=str(model))
    assert "row " in message
    assert "column 'prompt'" in message
    assert said in message


def test_one_row_that_the_template_refuses(plan, model: Path) -> None:
    template = (model / "chat_template.jinja").read_text()
    refuses = "{% if 'bad' in messages[0].content %}{{ raise_exception('bad word') }}{% endif %}"
    (model / "chat_template.jinja").write_text(refuses + template)
    own = rows()
    own[23]["prompt"] = "a bad question"
    message = refusal(plan, own, model_name_or_path=str(model))
    assert message.startswith("rows.jsonl, row 23, column 'prompt': ")


def test_a_tokenizer_without_a_template_or_an_end(plan, model: Path) -> None:
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "chat_template.jinja").unlink()
    assert "has no chat template" in refusal(plan, rows(), model_name_or_path=str(model))
    shutil.copy(model_path() / "chat_template.jinja", model)
    settings.pop("eos_token")
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    for file in ("special_tokens_map.json",):
        (model / file).unlink(missing_ok=True)
    assert "has no end-of-sequence token" in refusal(plan, rows(), model_name_or_path=str(model))


def test_a_damaged_tokenizer(plan, model: Path) -> None:
    (model / "tokenizer.json").write_text("{")
    assert "no tokenizer in" in refusal(plan, rows(), model_name_or_path=str(model))
