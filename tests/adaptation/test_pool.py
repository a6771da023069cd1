"""One model with several experts: what it answers as, and what a switch costs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fakes import save_adapter
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from svf_rl.errors import SVFError
from svf_rl.experts.arguments import EngineArguments
from svf_rl.experts.pool import ExpertPool, Mix
from svf_rl.generation import Completion, Sampling
from svf_rl.generation.prompts import encode_prompts
from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator
from svf_rl.models.arguments import ModelArguments
from svf_rl.quickstart import make_rows, model_path
from svf_rl.svf import SVFConfig, svf_layers

MODEL = ModelArguments("quickstart", dtype="float32")
TRANSFORMERS = EngineArguments(backend="transformers")
GREEDY = Sampling(max_tokens=16, temperature=0.0)


def saved(folder: Path, seed: int, **config: object) -> str:
    """An expert far enough from the base to write something else."""
    return save_adapter(folder, SVFConfig(init="random", init_std=0.3, **config), seed)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("experts")
    return {name: saved(root / name, seed) for seed, name in enumerate(["svf", "v1.5"])}


@pytest.fixture(scope="module")
def dispatcher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("others") / "dispatch", 9, target_modules="attention")


@pytest.fixture
def pool(vllm_engine: ColocatedVLLMGenerator, folders: dict[str, str], dispatcher: str) -> ExpertPool:
    return ExpertPool(MODEL, folders, {"dispatch": dispatcher}, vllm_engine, max_length=256)


@pytest.fixture
def answers_of() -> Callable[[ExpertPool], list[list[int]]]:
    """`answers_of(pool)`: greedy tokens of eight questions, as whatever the pool was told to be."""
    questions = [[{"role": "user", "content": row["prompt"]}] for row in make_rows("math", "test", 8)]

    def ask(pool: ExpertPool) -> list[list[int]]:
        ids = encode_prompts(pool.tokenizer, questions)
        completions: list[Completion] = pool.generate(ids, GREEDY, [0] * len(ids))
        return [completion.token_ids for completion in completions]

    return ask


@pytest.fixture
def answers(pool: ExpertPool, answers_of: Callable[[ExpertPool], list[list[int]]]) -> Callable[[], list[list[int]]]:
    """`answers()`: those of `pool`."""
    return lambda: answers_of(pool)


@pytest.mark.vllm
def test_each_switch_is_one_sync_and_gives_what_the_expert_alone_gives(
    pool: ExpertPool,
    answers: Callable[[], list[list[int]]],
    folders: dict[str, str],
    vllm_engine: ColocatedVLLMGenerator,
) -> None:
    written = {}
    for which in ("svf", "svf", "dispatch", None, "v1.5"):
        pool.use(which)
        written[which] = answers()
    assert pool.syncs == 4
    assert len({str(tokens) for tokens in written.values()}) == 4  # all of them write something else
    for name, folder in folders.items():
        base = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
        vllm_engine.sync(PeftModel.from_pretrained(base, folder), everything=True)
        assert answers() == written[name]
    base = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).requires_grad_(False)
    vllm_engine.sync(base, everything=True)
    assert answers() == written[None]


@pytest.mark.vllm
def test_a_combination_answers_like_the_adapter_that_is_saved_of_it(
    pool: ExpertPool, answers: Callable[[], list[list[int]]], tmp_path: Path, vllm_engine: ColocatedVLLMGenerator
) -> None:
    mix = Mix(torch.tensor([0.6, 0.4]), normalized=True)
    pool.use(mix)
    pool.use(Mix(torch.tensor([0.6, 0.4]), normalized=True))
    assert pool.syncs == 1
    written = answers()
    pool.save(mix, tmp_path / "mixed")
    assert sorted(file.name for file in (tmp_path / "mixed").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    base = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    vllm_engine.sync(PeftModel.from_pretrained(base, str(tmp_path / "mixed")), everything=True)
    assert answers() == written
    with pytest.raises(SVFError, match="is there and not empty"):
        pool.save(mix, tmp_path / "mixed")


@pytest.mark.vllm
def test_whole_weight_on_one_expert_is_that_expert_and_none_is_the_base(
    pool: ExpertPool, answers: Callable[[], list[list[int]]]
) -> None:
    def as_(which: str | Mix | None) -> list[list[int]]:
        pool.use(which)
        return answers()

    assert as_(Mix(torch.tensor([0.0, 1.0]))) == as_("v1.5")
    assert as_(Mix(torch.zeros(2), form="deviation")) == as_(None)
    rows = torch.zeros(pool.combination_groups("matrix"), 2)
    rows[:, 0] = 1
    assert as_(Mix(rows, scope="matrix")) == as_("svf")


def test_experts_of_a_pool_cost_vectors(folders: dict[str, str]) -> None:
    one, two = (
        ExpertPool(MODEL, dict(list(folders.items())[:count]), engine=TRANSFORMERS, max_length=64) for count in (1, 2)
    )
    sizes = [sum(p.numel() for p in pool.model.parameters()) for pool in (one, two)]
    assert sizes[1] - sizes[0] == sum(layer.svf_factors.s.numel() for layer in svf_layers(one.model).values())


def test_a_pool_that_cannot_be_is_refused_in_one_line(folders: dict[str, str], tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    get_peft_model(base, LoraConfig(target_modules=["up_proj"])).save_pretrained(tmp_path / "lora")
    other = saved(tmp_path / "attention", 3, target_modules="attention")
    torch.manual_seed(0)
    moved = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    moved.model.layers[0].mlp.up_proj.weight.data += 1
    get_peft_model(moved, SVFConfig()).save_pretrained(tmp_path / "moved")
    first = dict([next(iter(folders.items()))])
    cases: list[tuple[dict[str, str], str]] = [
        ({}, "name at least one expert"),
        ({**first, "gone": str(tmp_path / "a" / "gone")}, "is neither a local folder"),
        ({**first, "lora": str(tmp_path / "lora")}, "holds a LORA adapter"),
        ({**first, "attention": other}, "svf and attention have different targets"),
        ({**first, "moved": str(tmp_path / "moved")}, "different base weights"),
        ({"moved": str(tmp_path / "moved")}, "trained on other base weights"),
        ({"mix": first["svf"]}, "an expert cannot be called mix"),
    ]
    for experts, message in cases:
        with pytest.raises(SVFError, match=message) as caught:
            ExpertPool(MODEL, experts, engine=TRANSFORMERS, max_length=64)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("core", ["top:9", "projected:13"])
def test_experts_of_few_values_are_combined_with_others(
    core: str, folders: dict[str, str], tmp_path: Path, answers_of: Callable[[ExpertPool], list[list[int]]]
) -> None:
    """A mix of two experts, one of which is written out as a plain one, is the same mix."""
    few = saved(tmp_path / "few", 5, core=core)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32), few)
    plain.add_weighted_adapter(["default"], [1.0], "written")
    plain.save_pretrained(tmp_path / "plain", selected_adapters=["written"])
    written = []
    for own in (few, str(tmp_path / "plain" / "written")):
        pool = ExpertPool(MODEL, {"few": own, "svf": folders["svf"]}, engine=TRANSFORMERS, max_length=256)
        pool.use(Mix(torch.tensor([0.5, 0.5])))
        written.append(answers_of(pool))
    assert written[0] == written[1]


@pytest.mark.parametrize("core", ["band:2", "block:9"])
def test_an_adapter_that_mixes_stands_alone(
    core: str, tmp_path: Path, folders: dict[str, str], answers_of: Callable[[ExpertPool], list[list[int]]]
) -> None:
    other = saved(tmp_path / "other", 5, core=core)
    pool = ExpertPool(MODEL, {}, {"other": other, "svf": folders["svf"]}, engine=TRANSFORMERS, max_length=256)
    written = []
    for which in ("other", None, "svf"):
        pool.use(which)
        written.append(answers_of(pool))
    assert len({str(tokens) for tokens in written}) == 3
    with pytest.raises(SVFError, match=f"has a core {core}, more than multipliers"):
        ExpertPool(MODEL, {"other": other}, engine=TRANSFORMERS, max_length=256)


def test_an_expert_that_is_not_there_is_named_with_those_that_are(folders: dict[str, str]) -> None:
    pool = ExpertPool(MODEL, folders, engine=TRANSFORMERS, max_length=64)
    with pytest.raises(SVFError, match=r"no expert 'poet'; there are: svf, v1\.5"):
        pool.use("poet")
