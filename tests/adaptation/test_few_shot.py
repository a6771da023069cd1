"""Few-shot adaptation with the bundled model: what the search sees, what it finds, and that it goes on where it was."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import save_adapter

from svf_rl.adaptation.arguments import FewShotArguments, FitnessWeights
from svf_rl.adaptation.few_shot import adapt, draw_shots, unseen
from svf_rl.adaptation.few_shot_run import compare, experts_by_name, few_shot
from svf_rl.errors import SVFError
from svf_rl.evaluation.arguments import EvaluationArguments
from svf_rl.evaluation.items import TaskItems, load_items
from svf_rl.experts.arguments import EngineArguments
from svf_rl.experts.pool import ExpertPool, Mix
from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator
from svf_rl.models.arguments import ModelArguments
from svf_rl.runs.provenance import list_tasks
from svf_rl.tasks import TaskOptions

MODEL = ModelArguments("quickstart", dtype="float32")
TRANSFORMERS = EngineArguments(backend="transformers", batch_size=64)
SMALL = FewShotArguments(shots=4, population=2, generations=2, samples=1, seed=0)
TOKENS = 6  # of a completion, where it does not matter what it says


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One that spoils the model, `z = 1 + d`, and one that spoils it the other way, `z = 1 − d`: together they cancel
    out."""
    root = tmp_path_factory.mktemp("experts")
    return {name: save_adapter(root / name, by=by) for name, by in (("there", 0.5), ("back", -0.5))}


@pytest.fixture(scope="module")
def pool(experts: dict[str, str]) -> ExpertPool:
    return ExpertPool(MODEL, experts, engine=TRANSFORMERS, max_length=128)


def exam(pool: ExpertPool, split: str = "validation", max_tokens: int = TOKENS, limit: int = 64) -> TaskItems:
    arguments = EvaluationArguments("quickstart", ["exam"], max_tokens=max_tokens, limit=limit)
    return load_items("exam", arguments, pool.tokenizer, splits=(split,))


def without_costs(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in entry.items() if name not in ("seconds", "syncs")} for entry in history]


def part_of(items: TaskItems, rows: Sequence[int]) -> TaskItems:
    return replace(
        items,
        rows=[items.rows[i] for i in rows],
        prompts=[items.prompts[i] for i in rows],
        prompt_ids=[items.prompt_ids[i] for i in rows],
    )


# --- the labelled prompts


def test_shots_are_different_prompts_drawn_by_the_seed(pool: ExpertPool) -> None:
    items = part_of(exam(pool), [0, 0, 1, 2, 2, 3])
    assert {items.prompts[row] for row in draw_shots(items, 4, seed=0)} == set(items.prompts)
    assert len({tuple(draw_shots(items, 4, seed)) for seed in range(8)}) > 1
    assert draw_shots(items, 4, seed=5) == draw_shots(items, 4, seed=5)


def test_fewer_shots_are_the_first_ones_of_more(pool: ExpertPool) -> None:
    items = exam(pool)
    assert draw_shots(items, 10, seed=1)[:3] == draw_shots(items, 3, seed=1)


def test_fewer_labelled_prompts_than_shots_are_refused(pool: ExpertPool) -> None:
    with pytest.raises(SVFError, match=r"task exam has 3 labelled prompts, fewer than the 4 shots asked for"):
        draw_shots(part_of(exam(pool), [0, 1, 1, 2]), 4, seed=0)


def test_what_the_search_saw_is_never_reported(pool: ExpertPool) -> None:
    """Nor another row with the same prompt."""
    items = exam(pool)
    twice = part_of(items, [*range(10), 3, 4])
    assert unseen(twice, items, [3, 60]) == [0, 1, 2, 4, 5, 6, 7, 8, 9, 11]


def test_the_search_reads_the_shots_and_nothing_else(pool: ExpertPool, monkeypatch: pytest.MonkeyPatch) -> None:
    items, asked = exam(pool), set()
    generate = pool.generator.generate

    def listening(prompts: Sequence[list[int]], *rest: Any, **more: Any) -> Any:
        asked.update(map(tuple, prompts))
        return generate(prompts, *rest, **more)

    monkeypatch.setattr(pool.generator, "generate", listening)
    found = adapt(pool, items, replace(SMALL, generations=1))
    assert asked == {tuple(items.prompt_ids[row]) for row in found.shots}
    assert len(found.shots) == 4


# --- the search


def test_switches_off_an_expert_that_spoils_the_model(experts: dict[str, str]) -> None:
    """The search begins with the one expert in full, under which hardly an answer is right."""
    alone = ExpertPool(MODEL, {"there": experts["there"]}, engine=TRANSFORMERS, max_length=128)
    arguments = FewShotArguments(shots=6, population=6, generations=2, samples=0, weights=FitnessWeights(1, 0, 1))
    found = adapt(alone, exam(alone, max_tokens=24), arguments)
    at_start, best = found.history[0]["fitness"][0], found.fitness
    assert at_start < 0.25
    assert best > at_start + 0.2
    assert found.alpha.shape == (1, 1)
    assert found.alpha.item() < 0.9


def test_a_search_costs_one_weight_sync_a_candidate(pool: ExpertPool) -> None:
    before = pool.syncs
    found = adapt(pool, exam(pool), SMALL)
    assert found.evaluations == 4
    assert found.syncs == pool.syncs - before <= 4
    assert len(found.history) == 2


def test_the_same_seed_finds_the_same(pool: ExpertPool) -> None:
    first, again = adapt(pool, exam(pool), SMALL), adapt(pool, exam(pool), SMALL)
    assert without_costs(first.history) == without_costs(again.history)
    assert torch.equal(first.alpha, again.alpha)


@pytest.mark.parametrize(("scope", "groups"), [("global", 1), ("layer", 3), ("matrix", 9)])
def test_alpha_has_a_row_for_each_group(pool: ExpertPool, scope: Any, groups: int) -> None:
    found = adapt(pool, exam(pool), replace(SMALL, scope=scope, generations=1))
    assert found.alpha.shape == (groups, 2)
    assert found.experts == ["there", "back"]


def test_normalized_weights_sum_to_1(pool: ExpertPool) -> None:
    found = adapt(pool, exam(pool), replace(SMALL, scope="layer", normalized=True, generations=1))
    assert torch.allclose(found.alpha.sum(-1), torch.ones(3))


def test_random_search_takes_the_same_way(pool: ExpertPool) -> None:
    found = adapt(pool, exam(pool), replace(SMALL, method="random", generations=1))
    assert found.evaluations == 2


@pytest.mark.parametrize("chosen", ["best", "mean"])
def test_the_best_candidate_or_the_mean_of_the_elites_is_taken(pool: ExpertPool, chosen: Any) -> None:
    found = adapt(pool, exam(pool), replace(SMALL, chosen=chosen))
    last = found.history[-1]
    wanted = last["alpha"] if chosen == "best" else last["elites"]
    assert found.alpha.flatten().tolist() == pytest.approx(wanted)


# --- stopped and gone on


@pytest.mark.parametrize("calls", [1, 6])
def test_a_killed_search_goes_on_bit_by_bit(
    pool: ExpertPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Interrupted at some batch of completions of the first or the second generation, of four batches each."""
    items = exam(pool, max_tokens=24)
    whole = adapt(pool, items, SMALL, tmp_path / "whole")
    generate, left = pool.generator.generate, [calls]

    def dying(*arguments: Any, **more: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return generate(*arguments, **more)

    with monkeypatch.context() as patched:
        patched.setattr(pool.generator, "generate", dying)
        with pytest.raises(KeyboardInterrupt):
            adapt(pool, items, SMALL, tmp_path / "killed")
    if calls < 4:
        assert not (tmp_path / "killed").exists()  # no generation is whole yet
    resumed = adapt(pool, items, SMALL, tmp_path / "killed")
    assert without_costs(resumed.history) == without_costs(whole.history)
    assert torch.equal(resumed.alpha, whole.alpha)
    states = [json.loads((tmp_path / name / "search.json").read_text()) for name in ("whole", "killed")]
    assert states[0]["search"] == states[1]["search"]


def test_a_finished_search_is_not_made_again(pool: ExpertPool, tmp_path: Path) -> None:
    items = exam(pool)
    first = adapt(pool, items, SMALL, tmp_path / "out")
    before = pool.syncs
    again = adapt(pool, items, SMALL, tmp_path / "out")
    assert pool.syncs == before
    assert torch.equal(first.alpha, again.alpha)
    assert first.to_dict() == again.to_dict()


@pytest.mark.parametrize("changed", [{"seed": 1}, {"scope": "layer"}, {"generations": 2}, {"samples": 2}])
def test_another_search_does_not_go_on_there(pool: ExpertPool, tmp_path: Path, changed: dict[str, Any]) -> None:
    items, one = exam(pool), replace(SMALL, generations=1)
    adapt(pool, items, one, tmp_path)
    before = (tmp_path / "search.json").read_bytes()
    with pytest.raises(SVFError, match=rf"of a search with other settings \(.*{next(iter(changed))}: ") as error:
        adapt(pool, items, replace(one, **changed), tmp_path)
    assert "\n" not in str(error.value)
    assert (tmp_path / "search.json").read_bytes() == before


def test_a_search_names_its_generator_as_earlier_versions_did(pool: ExpertPool, tmp_path: Path) -> None:
    """Or their searches would not be resumed."""
    adapt(pool, exam(pool), replace(SMALL, generations=1), tmp_path)
    state = json.loads((tmp_path / "search.json").read_text())
    assert state["settings"]["generator"] == "TransformersRollouts"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"kind": "other"}', '{"kind": 1, "settings": 2}'])
def test_a_damaged_file_is_one_line(pool: ExpertPool, tmp_path: Path, content: str) -> None:
    (tmp_path / "search.json").write_text(content)
    with pytest.raises(SVFError, match=r"search\.json is (damaged|not of)"):
        adapt(pool, exam(pool), SMALL, tmp_path)


def test_a_folder_of_something_else_is_left_alone(pool: ExpertPool, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SVFError, match="holds something else"):
        adapt(pool, exam(pool), SMALL, tmp_path)
    with pytest.raises(SVFError, match="holds something else"):
        adapt(pool, exam(pool), SMALL, tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# --- bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shots": 0}, "shots must be 1 or more"),
        ({"scope": "head"}, "scope must be global or layer or matrix"),
        ({"form": "sum"}, "form must be mask or deviation"),
        ({"method": "grid"}, "method must be cem or random"),
        ({"chosen": "last"}, "chosen must be best or mean"),
        ({"chosen": "mean", "method": "random"}, "random search has no mean"),
        ({"samples": 0}, "samples is 0"),
        ({"samples": -1}, "samples must be 0 or more"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"generations": 0}, "generations must be 1 or more"),
        ({"population": 1}, "population must be at least 2"),
        ({"std": -1.0}, "std must be above 0"),
        ({"high": 0.0}, "low must be below high"),
        ({"seed": -1}, "seed must be 0 or more"),
    ],
)
def test_bad_settings_are_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SVFError, match=message) as error:
        FewShotArguments(**settings)
    assert "\n" not in str(error.value)


def test_greedy_accuracy_alone_needs_no_samples(pool: ExpertPool) -> None:
    greedy = replace(SMALL, samples=0, weights=FitnessWeights(1, 0, 0), generations=1)
    assert all(value in (0, 0.25, 0.5, 0.75, 1) for value in adapt(pool, exam(pool), greedy).history[0]["fitness"])


def test_experts_are_named_by_their_folders_or_by_hand(tmp_path: Path) -> None:
    assert experts_by_name(["runs/a/", "other=runs/b"]) == {"a": "runs/a/", "other": "runs/b"}
    (tmp_path / "lr=0.1").mkdir()
    own = str(tmp_path / "lr=0.1")
    assert experts_by_name([own, f"x={own}"]) == {"lr=0.1": own, "x": own}
    with pytest.raises(SVFError, match="two experts are called a"):
        experts_by_name(["runs/a", "elsewhere/a"])
    with pytest.raises(SVFError, match="give a folder"):
        experts_by_name(["=runs/a"])


# --- the whole call


def test_compares_on_the_same_unseen_items(pool: ExpertPool, tmp_path: Path) -> None:
    items = exam(pool, "test", limit=9)
    rows = [0, 2, 5, 8]
    cancelled = Mix(torch.tensor([[0.5, 0.5]]), form="deviation")
    results = compare(pool, items, rows, cancelled, tmp_path)
    assert [result.label for result in results] == ["base", "there", "back", "mean", "few-shot"]
    assert {result.items for result in results} == {4}
    by_label = {result.label: result for result in results}
    assert by_label["few-shot"].accuracy == by_label["base"].accuracy
    lines = [json.loads(line) for line in (tmp_path / "few-shot.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == rows
    before = pool.syncs
    again = compare(pool, items, rows, cancelled, tmp_path)
    assert pool.syncs == before
    assert [result.accuracy for result in again] == [result.accuracy for result in results]
    assert {result.reused for result in again} == {4}


def test_the_call_leaves_an_adapter_a_state_and_a_summary(experts: dict[str, str], tmp_path: Path) -> None:
    arguments = EvaluationArguments("quickstart", ["exam"], limit=12, max_tokens=TOKENS, backend="transformers")
    search = replace(SMALL, generations=1)
    found, _ = few_shot(arguments, experts, search, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["few_shot"]["alpha"] == found.alpha.tolist()
    assert len(summary["labelled_prompts"]) == 4
    assert [result["label"] for result in summary["results"]] == ["base", "there", "back", "mean", "few-shot"]
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert config["combination"]["alpha"] == found.alpha.tolist()
    _, again = few_shot(arguments, experts, search, tmp_path / "out")
    assert [r.reused for r in again] == [12] * 5


def test_the_adapter_says_of_which_task_and_reward_it_is(experts: dict[str, str], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"q": f"What is 1 + {i}?", "answer": str(i + 1)}) + "\n" for i in range(6)))
    own = TaskOptions(data_path=str(rows), prompt_column="q", answer_column="answer")
    search = replace(SMALL, generations=1)
    for task, options, reward, keys in (
        ("quickstart:choice", TaskOptions(), None, {"task": "quickstart", "skill": "choice"}),
        ("columns", own, "numeric", {"task": "columns", "prompt_column": "q", "rewards": ["numeric"]}),
    ):
        arguments = EvaluationArguments(
            "quickstart", [task], options=options, reward=reward, limit=12, max_tokens=4, backend="transformers"
        )
        few_shot(arguments, experts, search, out := tmp_path / task)
        recipe = json.loads((out / "adapter" / "summary.json").read_text())["recipe"]
        assert recipe.items() >= keys.items()
        assert f"`{task}`" in (out / "adapter" / "README.md").read_text()


def test_a_data_set_is_named_as_eval_takes_it() -> None:
    assert list_tasks({"task": "reasoning_gym", "dataset": "word_sorting"}) == ["reasoning_gym:word_sorting"]
    assert list_tasks({"task": "quickstart"}) == ["quickstart:math"]
    assert list_tasks({"task": "gsm8k", "dataset": None}) == ["gsm8k"]


def test_a_search_that_sees_all_items_leaves_nothing_to_report(experts: dict[str, str], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"What is 1 + {i}?", "answer": str(i + 1)}) + "\n" for i in range(4)))
    options = TaskOptions(data_path=str(rows), answer_column="answer")
    arguments = EvaluationArguments(
        "quickstart", ["columns"], options=options, reward="numeric", backend="transformers"
    )
    with pytest.raises(SVFError, match="no items are left to report beside the 4 shots: give fewer --shots"):
        few_shot(arguments, experts, SMALL, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("experts_given", "search", "message"),
    [
        ({"base": "there"}, SMALL, "cannot be called base"),
        ({"a/b": "there"}, SMALL, "not a valid name of a file"),
        ({"a": "there"}, replace(SMALL, shots=10_000), "fewer than the 10000 shots"),
        ({}, SMALL, "at least one expert"),
    ],
)
def test_a_bad_call_writes_nothing(
    experts: dict[str, str], tmp_path: Path, experts_given: dict[str, str], search: FewShotArguments, message: str
) -> None:
    arguments = EvaluationArguments("quickstart", ["exam"], limit=12, max_tokens=TOKENS, backend="transformers")
    given = {name: experts[which] for name, which in experts_given.items()}
    with pytest.raises(SVFError, match=message):
        few_shot(arguments, given, search, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.vllm
def test_in_vllm(experts: dict[str, str], vllm_engine: ColocatedVLLMGenerator) -> None:
    pool = ExpertPool(MODEL, experts, generator=vllm_engine, max_length=128)
    first, again = (adapt(pool, exam(pool), SMALL) for _ in range(2))
    assert without_costs(first.history) == without_costs(again.history)
    assert torch.equal(first.alpha, again.alpha)
    assert first.syncs <= 4
