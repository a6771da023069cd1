"""MBPP and HumanEval: the splits, the prompt, a begun answer, and references that `unit_tests` takes."""

import gzip
import json
from pathlib import Path
from random import Random

import pytest

from svf_rl.errors import SVFError
from svf_rl.rewards.verifier import find_verifier
from svf_rl.tasks import TaskOptions, find_task

MBPP, HUMANEVAL = find_task("mbpp"), find_task("humaneval")


def first_tests(rows) -> list[str]:
    return [row["answer"]["test_list"][0] for row in rows]


@pytest.fixture
def mbpp(tmp_path: Path) -> Path:
    """A made-up `mbpp.jsonl` of all task ids, backwards, and a sanitized file of every second one."""
    ids = range(974, 0, -1)
    full = [{"task_id": i, "text": f"Write f{i}.", "test_list": [f"assert f{i}()", "assert 1"]} for i in ids]
    clean = [{"task_id": i, "prompt": f"Write f{i}.", "test_list": [f"assert f{i}()"]} for i in ids[::2]]
    (tmp_path / "mbpp.jsonl").write_text("\n".join(map(json.dumps, full)))
    (tmp_path / "sanitized-mbpp.json").write_text(json.dumps(clean))
    return tmp_path


def test_mbpp_is_split_by_task_id_whatever_the_order_of_the_file(mbpp: Path) -> None:
    splits = MBPP.load(TaskOptions(data_path=str(mbpp)))
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 374, "validation": 90, "test": 500}
    assert first_tests(splits["train"]) == [f"assert f{i}()" for i in range(601, 975)]
    assert first_tests(splits["test"]) == [f"assert f{i}()" for i in range(11, 511)]


def test_the_reference_split_is_300_sanitized_tasks_shuffled_and_the_rest(mbpp: Path) -> None:
    splits = MBPP.load(TaskOptions(data_path=str(mbpp), profile="reference"))
    ids = list(range(2, 975, 2))
    order = list(range(300))
    Random(16).shuffle(order)
    names = [f"assert f{ids[i]}()" for i in order]
    assert first_tests(splits["train"]) == names[:200]
    assert first_tests(splits["validation"]) == names[200:]
    assert first_tests(splits["test"]) == [f"assert f{i}()" for i in ids[300:]]


def test_the_prompt_shows_the_tests_and_begins_the_answer(mbpp: Path) -> None:
    row = MBPP.load(TaskOptions(data_path=str(mbpp), train_items=1))["train"][0]
    assert [message["role"] for message in row["prompt"]] == ["system", "user", "assistant"]
    _, question, begun = (message["content"] for message in row["prompt"])
    assert question.startswith("Write f601.")
    assert "assert f601()\nassert 1" in question
    assert begun == "```python\n"
    assert row["answer"] == {"test_list": ["assert f601()", "assert 1"], "test_setup_code": "", "test_imports": []}


def test_the_reference_prompt_shows_one_test(mbpp: Path) -> None:
    options = TaskOptions(data_path=str(mbpp), profile="reference", dataset_config="full", train_items=1)
    question = MBPP.load(options)["train"][0]["prompt"][1]["content"]
    assert question.count("assert") - question.count("assertion") == 1


def test_stop_strings_follow_the_profile_and_the_recipe() -> None:
    assert MBPP.stop_strings(TaskOptions()) == ("\n```",)
    assert "Response" in MBPP.stop_strings(TaskOptions(profile="reference"))
    assert MBPP.stop_strings(TaskOptions(stop_strings=["END"], profile="reference")) == ("END",)
    assert MBPP.stop_strings(TaskOptions(stop_strings=[])) == ()
    assert find_task("gsm8k").stop_strings(TaskOptions()) == ()
    with pytest.raises(SVFError, match="empty string"):
        MBPP.stop_strings(TaskOptions(stop_strings=["END", ""]))


def test_mbpp_files_that_do_not_fit(tmp_path: Path, mbpp: Path) -> None:
    with pytest.raises(SVFError, match="no configuration 'clean': use full or sanitized"):
        MBPP.load(TaskOptions(data_path=str(mbpp), dataset_config="clean"))
    (mbpp / "mbpp.jsonl").write_text('{"task_id": 1, "text": "x", "test_list": ["assert f()"]}')
    with pytest.raises(SVFError, match=r"train split, task_id 601 to 974, has no rows"):
        MBPP.load(TaskOptions(data_path=str(mbpp)))
    (mbpp / "mbpp.jsonl").unlink()
    with pytest.raises(SVFError, match=r"mbpp\.jsonl does not exist"):
        MBPP.load(TaskOptions(data_path=str(mbpp)))


def test_the_real_mbpp(shared_data: Path) -> None:
    sizes = {}
    for config in ("full", "sanitized"):
        splits = MBPP.load(TaskOptions(data_dir=str(shared_data), dataset_config=config))
        sizes[config] = [len(rows) for rows in splits.values()]
        check = find_verifier("unit_tests").check_reference
        for rows in splits.values():
            for answer in rows["answer"]:
                check(answer)
    assert sizes == {"full": [374, 90, 500], "sanitized": [120, 43, 257]}
    reference = MBPP.load(TaskOptions(data_dir=str(shared_data), profile="reference"))
    assert [len(rows) for rows in reference.values()] == [200, 100, 127]


def test_the_real_humaneval(shared_data: Path) -> None:
    splits = HUMANEVAL.load(TaskOptions(data_dir=str(shared_data)))
    assert (splits["train"], splits["validation"], len(splits["test"])) == (None, None, 164)
    for row in splits["test"]:
        find_verifier("unit_tests").check_reference(row["answer"])
        assert row["prompt"][-1] == {"role": "assistant", "content": "```python\n"}
    begun = HUMANEVAL.load(TaskOptions(data_dir=str(shared_data), profile="reference"))["test"][0]
    assert begun["prompt"][-1]["content"] == "```python\n" + begun["answer"]["prompt"]


def test_an_unpacked_humaneval_and_none_at_all(tmp_path: Path) -> None:
    with pytest.raises(SVFError, match=r"HumanEval\.jsonl\.gz does not exist"):
        HUMANEVAL.load(TaskOptions(data_path=str(tmp_path)))
    row = {"prompt": "def f():\n", "test": "def check(candidate): pass", "entry_point": "f"}
    (tmp_path / "HumanEval.jsonl").write_text(json.dumps(row))
    assert HUMANEVAL.load(TaskOptions(data_path=str(tmp_path)))["test"][0]["answer"] == row
    packed = bytearray(gzip.compress(json.dumps(row).encode()))
    packed[10] = 255  # a block of no kind
    for content, said in ((b"not packed", "gzip"), (bytes(packed), "while decompressing")):
        (tmp_path / "HumanEval.jsonl.gz").write_bytes(content)
        with pytest.raises(SVFError, match=said):
            HUMANEVAL.load(TaskOptions(data_path=str(tmp_path)))
