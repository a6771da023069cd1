"""Dispatch without a model: who answers what, in which order, and how a prompt is classified."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from svf_rl.adaptation.arguments import check_classes, named_by_class
from svf_rl.adaptation.classifier import ClassifierPrompt, classification_ids, find_classifier_prompt
from svf_rl.adaptation.dispatch import by_expert
from svf_rl.adaptation.prompt_file import read_prompts
from svf_rl.adaptation.strategies import find_strategy
from svf_rl.adaptation.strategies.loglikelihood import label_ids
from svf_rl.errors import SVFError
from svf_rl.evaluation.items import room
from svf_rl.generation.prompts import encode_prompts
from svf_rl.quickstart import model_path
from svf_rl.quickstart.dispatch_skill import DISPATCH_PROMPT
from svf_rl.rewards.verifiers.dispatch_label import LABELS, read_label
from svf_rl.tasks import TaskOptions, find_task
from svf_rl.tasks.dispatch import SYSTEM_PROMPT


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(model_path())


# ---- who answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("experts", "loaded", "groups"),
    [
        (["m", "c", None, "m"], None, [(None, [2]), ("m", [0, 3]), ("c", [1])]),
        (["m", "c", None, "m"], "judge", [("m", [0, 3]), ("c", [1]), (None, [2])]),
        (["m", "c"], None, [("m", [0]), ("c", [1])]),
        ([None, None], None, [(None, [0, 1])]),
    ],
)
def test_prompts_go_expert_by_expert_and_what_is_loaded_goes_first(
    experts: list[str | None], loaded: str | None, groups: list[tuple[str | None, list[int]]]
) -> None:
    assert list(by_expert(experts, loaded).items()) == groups


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({}, "no class has an expert"),
        ({"maths": "x"}, "unknown class 'maths': use one of code, math, reasoning"),
        ({"other": "x"}, "'other' is what the base model answers"),
    ],
)
def test_classes_are_code_math_and_reasoning(classes: dict[str, str], message: str) -> None:
    with pytest.raises(SVFError, match=message) as error:
        check_classes(classes)
    assert "\n" not in str(error.value)


def test_a_classifier_of_other_classes_has_experts_for_these() -> None:
    check_classes({"sums": "x"}, ["sums", "options"])
    with pytest.raises(SVFError, match="unknown class 'math': use one of sums, options"):
        check_classes({"math": "x"}, ["sums", "options"])


def test_experts_are_given_as_class_and_path() -> None:
    assert named_by_class(["math=runs/a=b", "code=x"]) == {"math": "runs/a=b", "code": "x"}
    for given in (["runs/math"], ["math="], ["=x"], ["math=a", "math=b"]):
        with pytest.raises(SVFError, match="give"):
            named_by_class(given)


# ---- what the classifier reads and says ------------------------------------------------------------------------------


def test_the_last_request_is_classified_without_its_system_message_and_the_beginning_of_an_answer(tokenizer) -> None:
    conversations = [
        [
            {"role": "system", "content": "You are good at math."},
            {"role": "user", "content": "What is 1 + 1?"},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "Write f(x): add 1."},
            {"role": "assistant", "content": "def "},
        ],
        [{"role": "user", "content": "Write f(x): add 1."}],
    ]
    first, second = classification_ids(tokenizer, conversations, ClassifierPrompt("Which class?"))
    assert first == second
    text = tokenizer.decode(first)
    assert "Which class?" in text
    assert "math" not in text
    with pytest.raises(SVFError, match="no user turn"):
        classification_ids(tokenizer, [[{"role": "assistant", "content": "2"}]], ClassifierPrompt("Which class?"))


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (r"It is \boxed{Math}.", "math"),
        (r"\boxed{programming} or \boxed{math}", "code"),
        (r"\boxed{music}", None),
        ("math", None),
        ("", None),
    ],
)
def test_a_class_is_read_from_the_first_box(text: str, label: str | None) -> None:
    assert read_label(text) == label


def test_other_classes_are_read_and_scored_in_the_same_way(tokenizer) -> None:
    labels = ["sums", "logic"]
    # an alias of one of the four means itself where it is a class
    assert [read_label(rf"\boxed{{{text}}}", labels) for text in ("Logic", "sums", "math")] == ["logic", "sums", None]
    (found,) = find_strategy("loglikelihood").classify(Scores([[-2.0], [-1.0]]), [[5]], tokenizer, 1, labels)
    assert (found.label, set(found.logprobs)) == ("logic", set(labels))


class Scores:
    """A model whose opinion on each token is written down."""

    def __init__(self, logps: Sequence[Sequence[float]]):
        self.logps, self.asked = logps, []

    def loglikelihood(self, prompts, continuations):
        self.asked = list(zip(prompts, continuations, strict=True))
        return [list(row) for row in self.logps]


def test_the_likeliest_class_is_that_of_the_largest_sum(tokenizer) -> None:
    """A mean over the tokens would take the last class, which is no likelier than the first in any of its parts."""
    scores = Scores([[-1.0], [-2.0, -0.1], [-1.5, -0.1], [-1.4, -0.1, -0.1, -0.1]])
    (found,) = find_strategy("loglikelihood").classify(scores, [[5, 6]], tokenizer, 1, LABELS)
    assert found.label == LABELS[0]
    assert math.isclose(sum(map(math.exp, found.logprobs.values())), 1.0)
    assert scores.asked == [([5, 6], ids) for ids in label_ids(tokenizer, LABELS).values()]


def test_scores_that_are_no_numbers_name_no_class(tokenizer) -> None:
    for value in (math.nan, -math.inf):
        (found,) = find_strategy("loglikelihood").classify(Scores([[value]] * 4), [[5]], tokenizer, 1, LABELS)
        assert found.label is None


def test_no_label_is_the_beginning_of_another_one(tokenizer) -> None:
    """Else their probabilities would not exclude one another."""
    every = list(label_ids(tokenizer, LABELS).values())
    assert not any(a == b[: len(a)] for a in every for b in every if a is not b)


# ---- how it is asked -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"task": "dispatch"}, SYSTEM_PROMPT),
        ({"task": "dispatch", "system_prompt": "Sort it."}, "Sort it."),
        ({"task": "quickstart", "skill": "dispatch"}, DISPATCH_PROMPT),
        ({"task": "columns"}, SYSTEM_PROMPT),
        (None, SYSTEM_PROMPT),
    ],
)
def test_a_trained_classifier_is_asked_as_in_its_training(tmp_path: Path, recipe: object, expected: str) -> None:
    if recipe is not None:
        (tmp_path / "summary.json").write_text(json.dumps({"recipe": recipe}))
    assert find_classifier_prompt("owner/model", tmp_path) == ClassifierPrompt(expected)


def test_so_is_one_of_other_classes_with_its_worked_examples(tmp_path: Path, tokenizer) -> None:
    """Token by token what it read in training."""
    classes = {"sums": {"task": "quickstart:math", "description": "a small sum"}, "options": "quickstart:choice"}
    recipe = {"task": "dispatch", "classes": classes, "shots": 2, "learning_rate": 1e-3}
    (tmp_path / "summary.json").write_text(json.dumps({"recipe": recipe}))
    asked = find_classifier_prompt("quickstart", tmp_path)
    assert asked.labels == ("sums", "options")
    assert [turn["role"] for turn in asked.examples] == ["user", "assistant"] * 2
    rows = find_task("dispatch").load(TaskOptions(classes=classes, shots=2, test_items=8))["test"]
    plain = [prompt[-1:] for prompt in rows["prompt"]]
    assert classification_ids(tokenizer, plain, asked) == encode_prompts(tokenizer, rows["prompt"])


def test_worked_examples_that_are_gone_are_said(tmp_path: Path) -> None:
    recipe = {"task": "dispatch", "shots": 2, "data_dir": "elsewhere"}
    (tmp_path / "summary.json").write_text(json.dumps({"recipe": recipe}))
    with pytest.raises(SVFError, match=r"the worked examples of the classifier .*elsewhere/.* does not exist"):
        find_classifier_prompt("owner/model", tmp_path)


def test_the_bundled_model_is_asked_as_its_corpus_asks() -> None:
    bundled = ClassifierPrompt(DISPATCH_PROMPT)
    assert find_classifier_prompt("quickstart") == find_classifier_prompt(str(model_path())) == bundled
    assert find_classifier_prompt("owner/model") == ClassifierPrompt(SYSTEM_PROMPT)


# ---- prompts of a user -----------------------------------------------------------------------------------------------


def test_prompts_are_lines_or_rows(tmp_path: Path) -> None:
    lines, rows = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    lines.write_text("What is 1 + 1?\n\n  \nWrite f(x).\n")
    rows.write_text('{"prompt": "What is 1 + 1?"}\n{"prompt": "Write f(x)."}\n')
    expected = [[{"role": "user", "content": text}] for text in ("What is 1 + 1?", "Write f(x).")]
    assert read_prompts(lines, TaskOptions()) == read_prompts(rows, TaskOptions()) == expected
    assert read_prompts(lines, TaskOptions(), limit=1) == expected[:1]


def test_lines_end_where_a_line_does_and_nowhere_else(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffOne\u2028line\x0chere?\r\nTwo?".encode())
    assert [prompt[0]["content"] for prompt in read_prompts(path, TaskOptions())] == ["One\u2028line\x0chere?", "Two?"]


def test_a_file_without_prompts_is_one_line(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text("\n\n")
    binary.write_bytes(b"\xff\xfe\x00")
    for path, message in (
        (empty, "holds no line with text"), (binary, "cannot be read as text"),
        (tmp_path / "none.txt", "cannot be read"),
        (tmp_path, "cannot be read"), (tmp_path / "none.jsonl", "does not exist"),
    ):  # fmt: skip
        with pytest.raises(SVFError, match=message) as error:
            read_prompts(path, TaskOptions())
        assert "\n" not in str(error.value)


def test_a_prompt_that_leaves_no_room_is_named() -> None:
    assert room("prompt", [[1] * 5, [1] * 9], 20, limit=None) == 29
    assert room("prompt", [[1] * 9], 20, limit=16) == 16
    with pytest.raises(SVFError, match="prompt 1: the prompt has 16 tokens, and the model takes 16"):
        room("prompt", [[1], [1] * 16], 1, limit=16)
