"""A held-out text: where it is found, and how it is cut into windows."""

from pathlib import Path

import pytest
from fakes import refusal
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from svf_rl.errors import SVFError
from svf_rl.evaluation.text_windows import cut_windows, find_text, read_windows, start_ids
from svf_rl.quickstart import model_path


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """The bundled model's, which puts nothing before a text."""
    return AutoTokenizer.from_pretrained(model_path())


@pytest.fixture(scope="module")
def with_start() -> PreTrainedTokenizerBase:
    """A tokenizer that puts a token before every text, as Llama's does."""
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    bos = tokenizer.convert_ids_to_tokens(1)
    template = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 1)])
    tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


def test_windows_follow_one_another_and_their_first_token_is_not_scored():
    assert cut_windows(range(10, 17), [], 3) == [([10], [11, 12]), ([13], [14, 15])]  # 16 alone says nothing
    assert cut_windows(range(10, 15), [], 3) == [([10], [11, 12]), ([13], [14])]


def test_the_start_of_a_sequence_is_not_scored_and_counts_as_part_of_a_window():
    assert cut_windows(range(10, 15), [1], 3) == [([1], [10, 11]), ([1], [12, 13]), ([1], [14])]


@pytest.mark.parametrize(("start", "length", "least"), [([], 1, 2), ([1], 1, 2), ([], 0, 2), ([1, 5], -3, 3)])
def test_a_window_without_a_token_to_score_is_refused(start, length, least):
    with pytest.raises(SVFError, match=f"a window of {length} tokens has none to score: give at least {least}"):
        cut_windows([5, 6, 7], start, length)
    assert cut_windows([5, 6, 7], start, least)


def test_each_window_begins_as_the_tokenizer_begins_a_text(tokenizer, with_start, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("Tom has 3 eggs. He buys 2 more. How many eggs does he have?")
    ids = tokenizer(file.read_text(), add_special_tokens=False)["input_ids"]
    assert (start_ids(tokenizer), start_ids(with_start)) == ([], [1])
    assert [token for window in read_windows(file, tokenizer, 8, None, 64) for part in window for token in part] == ids
    windows = read_windows(file, with_start, 8, None, 64)
    assert {tuple(prompt) for prompt, _ in windows} == {(1,)}
    assert [token for _, text in windows for token in text] == ids
    assert read_windows(file, with_start, 8, 2, 64) == windows[:2]


def test_a_text_that_cannot_be_scored_is_refused_in_one_line(tokenizer, tmp_path):
    def refused(content: bytes, length: int = 8) -> str:
        (tmp_path / "text.txt").write_bytes(content)
        return refusal(lambda: read_windows(tmp_path / "text.txt", tokenizer, length, None, 64))

    assert "has fewer than two tokens" in refused(b"")
    one = tokenizer.decode(tokenizer("egg", add_special_tokens=False)["input_ids"][:1])
    assert "has fewer than two tokens" in refused(one.encode())
    assert "cannot be read as UTF-8" in refused(b"\xff\xfe\x00text")
    assert "a window of 64 tokens does not fit: the model takes 64" in refused(b"some words", 64)


def test_a_text_is_found_from_a_folder_or_in_a_package(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine.txt").write_text("a")
    assert find_text("sub/mine.txt", tmp_path) == tmp_path / "sub" / "mine.txt"
    assert find_text(str(tmp_path / "sub" / "mine.txt"), Path("/")) == tmp_path / "sub" / "mine.txt"
    assert find_text("transformers:py.typed", tmp_path).name == "py.typed"
    for name, message in (
        ("nowhere.txt", "text nowhere.txt: there is no file"),
        ("sub", "text sub: there is no file"),
        ("no_such_package:a.txt", "there is no package no_such_package here: install it, or give a path"),
        ("transformers:nowhere.txt", "text transformers:nowhere.txt: there is no file"),
        ("json.decoder:a.txt", "there is no file"),
    ):
        assert message in refusal(lambda name=name: find_text(name, tmp_path))
