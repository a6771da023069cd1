"""Dispatch with a real engine and real adapters: two passes, a weight sync an expert, and the experts' own answers."""

from collections.abc import Sequence
from typing import Any

import pytest
from fakes import save_adapter

from svf_rl.adaptation.classifier import ClassifierPrompt, classification_ids
from svf_rl.adaptation.dispatch import Dispatched, dispatch
from svf_rl.adaptation.prompt_file import ungraded_items
from svf_rl.adaptation.strategies import find_strategy
from svf_rl.adaptation.strategies.loglikelihood import label_ids
from svf_rl.errors import SVFError
from svf_rl.evaluation.answers import make_records
from svf_rl.evaluation.arguments import EvaluationArguments
from svf_rl.evaluation.items import TaskItems, load_items
from svf_rl.evaluation.records import Record
from svf_rl.experts.pool import ExpertPool
from svf_rl.generation import Sampling
from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator
from svf_rl.models.arguments import ModelArguments
from svf_rl.quickstart import make_rows
from svf_rl.quickstart.dispatch_skill import DISPATCH_PROMPT
from svf_rl.rewards.verifiers.dispatch_label import LABELS

pytestmark = pytest.mark.vllm
GREEDY = Sampling(max_tokens=12, temperature=0.0)
ASKED = ClassifierPrompt(DISPATCH_PROMPT)
EXPERTS = {"math": "first", "code": "second"}  # a reasoning question has no expert here


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Saved adapters whose answers differ from the base model's and from one another."""
    root = tmp_path_factory.mktemp("experts")
    # the judge stays near the base model, so that it still names classes
    moved = {"first": 0.3, "second": 0.3, "judge": 0.02}
    return {name: save_adapter(root / name, seed=seed, by=by) for seed, (name, by) in enumerate(moved.items())}


@pytest.fixture(scope="module")
def pool(vllm_engine: ColocatedVLLMGenerator, folders: dict[str, str]) -> ExpertPool:
    experts = {name: folders[name] for name in ("first", "second")}
    judge = {"judge": folders["judge"]}
    return ExpertPool(ModelArguments("quickstart", dtype="float32"), experts, judge, vllm_engine, max_length=256)


@pytest.fixture(scope="module")
def conversations() -> list[list[dict[str, str]]]:
    """Twelve questions of each of the four classes, in turn, with the system message and the beginning of an answer
    that only the second pass is to see."""
    rows = make_rows("dispatch", "test", 48)
    return [
        [
            {"role": "system", "content": "Answer."},
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": "So "},
        ]
        for row in rows
    ]


def _dispatch(pool: ExpertPool, items: TaskItems, **options: Any) -> Dispatched:
    return dispatch(pool, items, EXPERTS, ASKED, **{"max_tokens": 16, **options})


@pytest.fixture(scope="module")
def items(pool: ExpertPool, conversations: list[list[dict[str, str]]]) -> TaskItems:
    return ungraded_items(pool.tokenizer, conversations, GREEDY)


def _alone(pool: ExpertPool, items: TaskItems, expert: str | None, places: Sequence[int]) -> list[Record]:
    pool.use(expert)
    return make_records(items, [(place, 0) for place in places], pool, 0)


@pytest.mark.parametrize("method", ["generate", "loglikelihood"])
@pytest.mark.parametrize("classifier", [None, "judge"])
def test_each_prompt_is_answered_by_the_expert_of_its_class_after_one_sync_an_expert(
    pool: ExpertPool, items: TaskItems, classifier: str | None, method: Any
) -> None:
    pool.use(None)
    done = _dispatch(pool, items, classifier=classifier, method=method)

    labels = [classified.label for classified in done.classes]
    assert done.experts == [EXPERTS.get(label) for label in labels]
    used = set(done.experts)
    assert {None, "first"} <= used, f"classes {set(labels)} say too little"
    assert done.first.syncs == (classifier is not None)
    assert done.second.syncs == len(used - {classifier})
    assert done.first.seconds > 0
    assert done.second.seconds > 0

    for expert in used:  # alone, in the same company
        places = [place for place, other in enumerate(done.experts) if other == expert]
        assert _alone(pool, items, expert, places) == [done.answers[place] for place in places]
    assert done.answers != _alone(pool, items, None, range(48))  # the experts do answer otherwise


def test_other_and_what_cannot_be_read_goes_to_the_base_model_whatever_was_used_before(
    pool: ExpertPool, items: TaskItems
) -> None:
    """One token is too few for a class: all are unreadable."""
    base = _alone(pool, items, None, range(48))
    pool.use("second")
    done = _dispatch(pool, items, max_tokens=1, classifier="judge")
    assert {classified.label for classified in done.classes} == {None}
    assert set(done.experts) == {None}
    assert done.answers == base


def test_the_likeliest_class_is_what_the_model_itself_says_of_the_labels(
    pool: ExpertPool, conversations: list[list[dict[str, str]]]
) -> None:
    """Against log p of each label by the pool, one at a time; and mostly what it writes."""
    pool.use(None)
    prompts = classification_ids(pool.tokenizer, conversations, ASKED)
    found = find_strategy("loglikelihood").classify(pool, prompts, pool.tokenizer, 1, LABELS)
    for prompt, classified in list(zip(prompts, found, strict=True))[:6]:
        labels = label_ids(pool.tokenizer, LABELS).items()
        sums = {label: sum(pool.loglikelihood([prompt], [ids])[0]) for label, ids in labels}
        assert classified.label == max(sums, key=lambda label: sums[label])
        gap = sums["math"] - sums["code"]
        assert classified.logprobs["math"] - classified.logprobs["code"] == pytest.approx(gap, abs=1e-3)
    written = find_strategy("generate").classify(pool, prompts, pool.tokenizer, 16, LABELS)
    agree = [a.label == b.label for a, b in zip(found, written, strict=True) if b.label is not None]
    assert sum(agree) >= 0.9 * len(agree)


def test_items_of_a_task_come_back_graded_and_in_order(pool: ExpertPool) -> None:
    task = load_items(
        "quickstart:math", EvaluationArguments("quickstart", ["quickstart:math"], limit=12), pool.tokenizer
    )
    chosen = [7, 3, 11, 0]
    done = _dispatch(pool, task, rows=chosen)
    assert [record.index for record in done.answers] == chosen
    assert all(record.prompt == task.prompts[record.index] for record in done.answers)
    assert all(isinstance(record.correct, bool) for record in done.answers)


@pytest.mark.parametrize(
    ("experts", "options", "message"),
    [
        ({"math": "fourth"}, {}, "no expert 'fourth'; there are: first, second, judge"),
        ({"math": "first"}, {"classifier": "fourth"}, "no expert 'fourth'; there are: first, second, judge"),
        ({"math": "first"}, {"method": "guess"}, "unknown method 'guess'"),
    ],
)
def test_bad_arguments_are_one_line(
    pool: ExpertPool, items: TaskItems, experts: dict[str, str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SVFError, match=message) as error:
        dispatch(pool, items, experts, ASKED, **options)
    assert "\n" not in str(error.value)


def test_no_prompts_are_an_error(pool: ExpertPool) -> None:
    with pytest.raises(SVFError, match="no prompts to dispatch"):
        _dispatch(pool, ungraded_items(pool.tokenizer, [], GREEDY))
