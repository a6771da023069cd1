"""Evolution strategies on the quickstart with the engine that computes with the model's factors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from fakes import read_metrics, save_adapter
from launched_run import LaunchedRun, assert_same
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from svf_rl.generation.vllm.colocated import POLICY, ColocatedVLLMGenerator
from svf_rl.generation.weights import SharedWeights
from svf_rl.quickstart import make_rows, model_path
from svf_rl.rewards import load_reward
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.svf import SVFConfig
from svf_rl.train import run
from svf_rl.training.evolution import EvolutionTrainer

pytestmark = pytest.mark.vllm
MEMBERS = 16


@pytest.fixture(scope="module")
def shared() -> tuple[PeftModel, ColocatedVLLMGenerator]:
    """The bundled model with an adapter, and the engine that has its factors."""
    base = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    model = get_peft_model(base, SVFConfig(task_type="CAUSAL_LM"))
    engine = ColocatedVLLMGenerator(
        str(model_path()), dtype=torch.float32, seed=0, device="cpu", max_model_len=128, max_num_seqs=64,
        enforce_eager=True, shared=SharedWeights.of(model),
    )  # fmt: skip
    return model, engine


@pytest.fixture
def evolving(
    shared: tuple[PeftModel, ColocatedVLLMGenerator], tokenizer: Any, tmp_path: Path
) -> Callable[..., EvolutionTrainer]:
    """`evolving(name, **settings)`: a trainer of the model as it was, with 8 prompts for 16 members."""
    model, engine = shared

    def rows(split: str, count: int) -> Dataset:
        turns = make_rows("math", split, count)
        return Dataset.from_list([{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in turns])

    def build(name: str, **settings: Any) -> EvolutionTrainer:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.fill_(1)
        own: dict[str, Any] = {
            "output_dir": str(tmp_path / name), "use_cpu": True, "report_to": "none", "use_vllm": True, "beta": 0.0,
            "num_generations": MEMBERS, "per_device_train_batch_size": 8 * MEMBERS,
            "evolution_sigma": 0.1, "learning_rate": 2e-2, "max_grad_norm": 1.0, "max_completion_length": 48,
            "save_strategy": "no", "disable_tqdm": True, "gradient_checkpointing": False, "max_steps": 1,
        }  # fmt: skip
        args = SVFReinforceConfig(objective="evolution_strategies", **{**own, **settings})
        reward = load_reward({"name": "numeric"})
        return EvolutionTrainer(
            model, reward, args, rows("train", 256), rows("validation", 128), tokenizer, generator=engine
        )

    return build


def test_a_population_in_one_batch_answers_as_its_members_do_one_by_one(evolving: Any) -> None:
    trainer = evolving("batch", evolution_sigma=0.3)
    asked: list[Any] = []
    inner = trainer.generator.generate

    def recorded(prompts: Any, sampling: Any, seeds: Any, **more: Any) -> Any:
        asked.append((prompts, sampling, seeds, more["adapters"], inner(prompts, sampling, seeds, **more)))
        return asked[-1][-1]

    trainer.generator.generate = recorded
    try:
        trainer.train()
    finally:
        del trainer.generator.generate
    prompts, sampling, seeds, numbers, together = asked[0]
    assert len(asked) == 1
    assert sorted(set(numbers)) == [POLICY + 1 + member for member in range(MEMBERS)]
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data.fill_(1)
    trainer.state.global_step = 0
    perturbations = list(trainer._perturbations())
    for member in range(MEMBERS):
        eps, sign = perturbations[member // 2], 1 - 2 * (member % 2)
        for parameter, part in zip(trainer._trained, trainer._parts(eps), strict=True):
            parameter.data = 1 + sign * 0.3 * part
        trainer.generator.sync(trainer.model)
        own = [place for place, number in enumerate(numbers) if number == POLICY + 1 + member]
        alone = trainer.generator.generate([prompts[p] for p in own], sampling, [seeds[p] for p in own])
        assert [completion.token_ids for completion in alone] == [together[p].token_ids for p in own]
    assert len({tuple(completion.token_ids) for completion in together}) > 8


def test_it_teaches_the_quickstart_its_care(evolving: Any) -> None:
    trainer = evolving("care", max_steps=12, num_generations=32, per_device_train_batch_size=256)
    before = trainer.evaluate()["eval_accuracy"]
    weights = {name: p.clone() for name, p in trainer.generator.model.named_parameters()}
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] > before + 0.1
    assert all(torch.equal(weights[name], p) for name, p in trainer.generator.model.named_parameters())


def test_a_run_that_stopped_early_goes_on_to_the_same_bits(evolving: Any, tmp_path: Path) -> None:
    own = {"per_device_train_batch_size": 4 * MEMBERS, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    ends = []
    for name, cut in (("whole", False), ("cut", True)):
        if cut:
            evolving(name, **{**own, "max_steps": 2}).train()
        trainer = evolving(name, **own)
        trainer.train("auto")
        ends.append(torch.cat([p.detach().clone() for p in trainer._trained]))
    assert torch.equal(*ends)
    assert (ends[0] - 1).abs().max() > 0.02
    metrics = [[line for line in read_metrics(tmp_path / name) if "reward" in line] for name in ("whole", "cut")]
    assert metrics[0] == metrics[1]
    assert len(metrics[0]) == 4


def test_the_weights_of_experts_evolve_too(tmp_path: Path, repository: Path) -> None:
    """Through the recipe, with the engine that it asks for."""
    config = SVFConfig(init="random", init_std=0.05)
    experts = [save_adapter(tmp_path / name, config, seed) for seed, name in enumerate(["one", "two"])]
    settings = {
        "adapter": "combination", "experts": experts, "alpha_scope": "layer", "output_dir": str(tmp_path / "run"),
        "max_steps": 2, "num_generations": 8, "per_device_train_batch_size": 32, "train_items": 32, "eval_steps": 1,
        "save_steps": 1, "validation_items": 8, "test_items": 8, "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
    recipe = repository / "recipes/quickstart_evolution.yaml"
    summary = run(str(recipe), [f"--{key}={json.dumps(value)}" for key, value in settings.items()])
    assert summary is not None
    assert (summary.updates, summary.trained_values) == (2, 6)
    last = json.loads((tmp_path / "run/checkpoint-2/adapter_config.json").read_text())["combination"]
    assert last["alpha"] != [[0.5, 0.5]] * 3


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("config", ["cpu", pytest.param("cpu_ddp", marks=pytest.mark.distributed)])
def test_a_run_that_was_killed_is_the_same_to_the_bit(config: str, tmp_path: Path) -> None:
    settings = [
        "--objective", "evolution_strategies", "--beta", "0", "--num_generations", "16",
        "--per_device_train_batch_size", "64", "--max_steps", "12", "--eval_steps", "4", "--save_steps", "4",
        "--train_items", "64", "--validation_items", "16", "--test_items", "32", "--max_completion_length", "24",
        "--log_completions", "--num_completions_to_print", "1", "--vllm_max_model_length", "128",
    ]  # fmt: skip
    whole = LaunchedRun(config, tmp_path / "whole", tmp_path / "whole.log", settings)
    assert whole.process.wait() == 0, whole.said()[-3000:]
    for update in (2, 6, 11):
        killed = LaunchedRun(config, tmp_path / "killed", tmp_path / "killed.log", settings)
        reached = killed.wait_for(lambda killed=killed, update=update: killed.update() >= update)
        assert reached, killed.said()[-3000:]
        killed.kill()
    last = LaunchedRun(config, tmp_path / "killed", tmp_path / "killed.log", settings)
    assert last.process.wait() == 0, last.said()[-3000:]
    assert_same(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(900)
def test_two_processes_with_an_engine_each_make_the_same_step(tmp_path: Path) -> None:
    settings = [
        "--objective", "evolution_strategies", "--beta", "0", "--num_generations", "16",
        "--max_steps", "3", "--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false",
        "--train_items", "64", "--validation_items", "16", "--test_items", "32", "--vllm_max_model_length", "128",
    ]  # fmt: skip
    for config, size in (("cpu", "96"), ("cpu_ddp", "48")):
        trained = LaunchedRun(
            config, tmp_path / config, tmp_path / f"{config}.log", [*settings, "--per_device_train_batch_size", size]
        )
        assert trained.process.wait() == 0, trained.said()[-3000:]
    one, two = (load_file(tmp_path / config / "adapter_model.safetensors") for config in ("cpu", "cpu_ddp"))
    for name in (name for name in one if "svf_z" in name):
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-5)
    rewards = [[line["reward"] for line in read_metrics(tmp_path / c) if "reward" in line] for c in ("cpu", "cpu_ddp")]
    assert rewards[0] == pytest.approx(rewards[1])
    assert len(rewards[0]) == 3
