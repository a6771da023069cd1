"""A user's own dataset: which files are read, what becomes of the columns, what is held out."""

import json
from pathlib import Path

import pyarrow
import pytest
from datasets import Dataset, Image
from pyarrow import parquet

from svf_rl.errors import SVFError
from svf_rl.tasks import TaskOptions, find_task
from svf_rl.tasks.columns import read_rows

TASK = find_task("columns")
ROWS = [{"q": f"What is {i}?", "gold": str(i), "level": i % 3} for i in range(20)]


def save(path: Path, rows: list[dict]) -> Path:
    match path.suffix:
        case ".jsonl":
            path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
        case ".json":
            path.write_text(json.dumps(rows))
        case ".csv":
            lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)]
            path.write_text("\n".join(lines))
        case ".parquet":
            Dataset.from_list(rows).to_parquet(path)
    return path


def load(path: Path, **options) -> dict:
    return TASK.load(TaskOptions(data_path=str(path), **{"prompt_column": "q", **options}))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_one_file_of_any_kind_is_training_rows_of_which_a_share_is_held_out(tmp_path: Path, suffix: str) -> None:
    splits = load(save(tmp_path / f"mine{suffix}", ROWS), answer_column="gold", validation_share=0.25)
    assert (len(splits["train"]), len(splits["validation"]), splits["test"]) == (15, 5, None)
    held_out, kept = ({row["prompt"][0]["content"] for row in splits[name]} for name in ("validation", "train"))
    assert held_out | kept == {row["q"] for row in ROWS}
    assert sorted(splits["train"].column_names) == ["answer", "gold", "level", "prompt"]


def test_the_held_out_rows_are_the_same_every_time(tmp_path: Path) -> None:
    path = save(tmp_path / "mine.jsonl", ROWS)
    assert load(path)["validation"]["gold"][:] == load(path)["validation"]["gold"][:]


def test_a_folder_holds_a_file_a_split(tmp_path: Path) -> None:
    for name, count in (("train.jsonl", 4), ("validation.csv", 3), ("test.parquet", 2)):
        save(tmp_path / name, ROWS[:count])
    assert [len(rows) for rows in load(tmp_path).values()] == [4, 3, 2]


def test_prompts_become_conversations(tmp_path: Path) -> None:
    rows = [{"q": "Hi?"}, {"q": "Ho?"}]
    prompt = load(save(tmp_path / "a.jsonl", rows), validation_share=0.5, system_prompt="Short.")["train"][0]["prompt"]
    assert [message["role"] for message in prompt] == ["system", "user"]


def test_conversations_stay_and_keep_their_own_system_message(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Mine."}, {"role": "user", "content": "Hi?"}]
    path = save(tmp_path / "a.jsonl", [{"q": turns}, {"q": turns}])
    assert load(path, validation_share=0.5, system_prompt="Other.")["train"][0]["prompt"] == turns


def test_the_answer_column_wins_over_another_column_called_answer(tmp_path: Path) -> None:
    rows = [{"q": "a", "answer": "long", "final": "7"}] * 2
    train = load(save(tmp_path / "a.jsonl", rows), answer_column="final", validation_share=0.5)["train"]
    assert train[0]["answer"] == train[0]["final"] == "7"


def test_a_column_that_only_some_rows_have_is_null_in_the_others(tmp_path: Path) -> None:
    path = save(tmp_path / "train.jsonl", [{"q": "a"}, {"q": "b", "hint": "x"}])
    save(tmp_path / "validation.jsonl", [{"q": "c"}])
    assert load(path.parent)["train"]["hint"][:] == [None, "x"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_column": "question"}, "no column 'question'; it has: q, gold, level"),
        ({"answer_column": "solution"}, "no column 'solution'; it has: q, gold, level"),
        ({"prompt_column": "level"}, "must be text or a list of messages"),
        ({"validation_share": 0.001}, "leaves one of the two splits empty"),
        ({"validation_share": 1.0}, "between 0 and 1"),
        ({"train_items": 0}, "train_items must be at least 1"),
    ],
)
def test_options_that_do_not_fit_the_data(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(SVFError, match=message):
        load(save(tmp_path / "mine.jsonl", ROWS), **options)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"q": "x"}\n{"q": \n', "line 2 is damaged .not valid JSON: "),
        ("a.json", '{"q": "x"}', "must contain objects"),
        ("a.json", "[1, 2]", "must contain objects"),
        ("a.jsonl", '{"q": "x"}\n{"q": 5}\n', r"a\.jsonl: Arrow"),
        ("a.parquet", "no parquet", r"a\.parquet: Arrow"),
        ("a.txt", "x", "must be one of"),
        ("a.jsonl", "", "no column 'q'"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(SVFError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_two_files_for_one_split(tmp_path: Path) -> None:
    save(tmp_path / "train.jsonl", ROWS)
    save(tmp_path / "train.csv", ROWS)
    with pytest.raises(SVFError, match="two train files"):
        load(tmp_path)


def test_without_a_source_or_a_reward_the_recipe_must_name_one() -> None:
    with pytest.raises(SVFError, match="needs data_path"):
        TASK.load(TaskOptions())
    with pytest.raises(SVFError, match="name one in the recipe"):
        TASK.rewards(TaskOptions())


@pytest.mark.parametrize("blank", ["", " "])
def test_a_blank_question_is_named_by_its_row(tmp_path: Path, blank: str) -> None:
    with pytest.raises(SVFError, match=r"row 1, column 'q' must be text, not ' ?'"):
        load(save(tmp_path / "mine.jsonl", [{"q": "a"}, {"q": blank}]))


def test_images_and_times_that_no_column_here_holds_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    Dataset.from_dict({"prompt": ["1?"], "seen": [{"bytes": b"none", "path": None}]}).cast_column(
        "seen", Image()
    ).to_parquet(file)
    with pytest.raises(SVFError, match="column 'seen' has images or sound"):
        read_rows(TaskOptions(data_path=str(file)))
    parquet.write_table(pyarrow.table({"prompt": ["1?"], "at": pyarrow.array([2**62], pyarrow.timestamp("us"))}), file)
    with pytest.raises(SVFError, match="a time that Python does not know"):
        read_rows(TaskOptions(data_path=str(file)))


def test_an_integer_that_no_column_here_holds_is_one_line(tmp_path: Path) -> None:
    table = pyarrow.table({"prompt": ["1?"], "id": pyarrow.array([2**63], pyarrow.uint64())})
    parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(SVFError, match="an integer of more than 63 bits: write it as text"):
        read_rows(TaskOptions(data_path=str(tmp_path / "rows.parquet")))
