"""Evolution strategies: the update by hand, what a population is asked for, runs that resume, and what is refused."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evolving_process
import pandas as pd
import pytest
import torch
from evolving_process import evolve
from fakes import TableGenerator, nearness, read_metrics, refusal
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

from svf_rl.errors import SVFError
from svf_rl.generation.vllm.colocated import POLICY
from svf_rl.losses.evolution import shape_fitness
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.settings.dry_run import check_recipe
from svf_rl.settings.recipe import load_recipe
from svf_rl.svf import SVFConfig
from svf_rl.training.evolution import EvolutionTrainer

Make = Callable[..., Any]
Z = Callable[[Any], dict[str, Tensor]]
MEMBERS, PROMPTS, SIGMA = 8, 4, 0.1
POPULATION = {
    "objective": "evolution_strategies", "use_vllm": True, "num_generations": MEMBERS,
    "per_device_train_batch_size": MEMBERS * PROMPTS, "evolution_sigma": SIGMA,
}  # fmt: skip


@pytest.fixture
def evolving(make_trainer: Make, tokenizer: Any) -> Make:
    """`evolving(luck=0.0, **settings)`: a trainer of one update of a population of 8 that answers 4 prompts."""

    def build(luck: float = 0.0, reward: Any = nearness, **settings: Any) -> EvolutionTrainer:
        generator = TableGenerator(tokenizer.eos_token_id, luck=luck)
        return make_trainer(
            generator=generator, reward=reward, trainer_class=EvolutionTrainer, **{**POPULATION, **settings}
        )

    return build


def flat(z: dict[str, Tensor]) -> Tensor:
    return torch.cat(list(z.values()))


# ---- an update -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fitness", ["ranks", "normalized"])
@pytest.mark.parametrize("accumulated", [1, 4])
def test_an_update_is_the_estimate_by_hand(evolving: Make, z_of: Z, fitness: str, accumulated: int) -> None:
    trainer = evolving(
        evolution_fitness=fitness, gradient_accumulation_steps=accumulated,
        per_device_train_batch_size=MEMBERS * PROMPTS // accumulated,
    )  # fmt: skip
    before = flat(z_of(trainer))
    trainer.train()
    table = trainer.generator.table
    members = torch.stack([table[POLICY + 1 + member] for member in range(MEMBERS)])  # z itself is m
    plus, minus = members[0::2], members[1::2]
    torch.testing.assert_close((plus + minus) / 2, before.expand_as(plus))
    assert (plus - before).std().item() == pytest.approx(SIGMA, rel=0.1)
    rewards = torch.exp(-10 * (members - trainer.generator.target).square().mean(1))
    shaped = shape_fitness((400 * rewards).round() / 400, fitness)
    eps = (plus - minus) / (2 * SIGMA)
    gradient = -((shaped[0::2] - shaped[1::2])[:, None] * eps).mean(0) / (2 * SIGMA)
    torch.testing.assert_close(flat(z_of(trainer)), before - 0.1 * gradient, rtol=0, atol=2e-4)
    line = trainer.state.log_history[0]
    assert line["grad_norm"] == pytest.approx(gradient.norm().item(), rel=1e-3)
    assert line["loss"] == pytest.approx(-line["reward"], abs=1e-6)


def test_a_pair_answers_the_same_prompts_with_the_same_luck(evolving: Make) -> None:
    trainer = evolving(max_steps=2)
    trainer.train()
    generator = trainer.generator
    for members in generator.members:
        assert members == [POLICY + 1 + member for member in range(MEMBERS)] * PROMPTS
    for seeds in generator.seeds:
        assert seeds[0::2] == seeds[1::2]
        assert len(set(seeds)) == len(seeds) // 2
    assert not set(generator.seeds[0]) & set(generator.seeds[1])
    asked = [[prompts[i : i + MEMBERS] for i in range(0, len(prompts), MEMBERS)] for prompts in generator.prompts]
    assert all(group == [group[0]] * MEMBERS for groups in asked for group in groups)
    assert [len({tuple(group[0]) for group in groups}) for groups in asked] == [PROMPTS, PROMPTS]


def test_no_pass_of_the_model_is_made(evolving: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a pass of the model")

    trainer = evolving(max_steps=2)
    monkeypatch.setattr(trainer.model.get_base_model(), "forward", never)
    monkeypatch.setattr(trainer.model.get_base_model().model, "forward", never)
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("config", [None, SVFConfig(task_type="CAUSAL_LM", parameterization="sigmoid")])
def test_the_population_comes_nearer_to_what_is_rewarded(evolving: Make, config: Any) -> None:
    trainer = evolving(
        luck=0.1, peft_config=config, max_steps=25, optim="adamw_torch", learning_rate=0.05, num_generations=32,
        per_device_train_batch_size=64, per_device_eval_batch_size=32, eval_items=8, eval_strategy="steps",
        eval_steps=25,
    )  # fmt: skip
    before = trainer.evaluate()["eval_reward"]
    trainer.train()
    history = trainer.state.log_history
    assert [line["eval_reward"] for line in history if "eval_reward" in line][-1] > before + 0.2
    rewards = [line["reward"] for line in history if "reward" in line]
    assert rewards[-1] > rewards[0] + 0.2


@pytest.mark.parametrize("core", ["top:3", "projected:13"])
def test_few_values_are_perturbed_as_they_are(evolving: Make, core: str) -> None:
    """The members differ by the perturbation of the few values, which is what the estimate is made for."""
    trainer = evolving(peft_config=SVFConfig(task_type="CAUSAL_LM", core=core), learning_rate=1.0)
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    count = sum(p.numel() for p in trained)
    trainer.train()
    table = trainer.generator.table
    members = torch.stack([table[POLICY + 1 + member] for member in range(MEMBERS)])
    torch.testing.assert_close((members[0::2] + members[1::2]) / 2, torch.ones_like(members[0::2]))
    assert count == (13 if core == "projected:13" else 3 * len(trained))
    assert all((p != 0).all() for p in trained)
    spread = (members[0] - 1)[members[0] != 1].std().item()
    assert SIGMA / 3 < spread < 3 * SIGMA


def test_a_core_that_mixes_has_no_row_for_a_member(evolving: Make) -> None:
    with pytest.raises(SVFError, match="more than multipliers of singular values"):
        evolving(peft_config=SVFConfig(task_type="CAUSAL_LM", core="band:1")).train()


def test_what_cannot_be_scored_is_left_out(evolving: Make, z_of: Z) -> None:
    def some(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        return [None if i % 3 == 0 else value for i, value in enumerate(nearness(completion_ids))]

    trainer = evolving(reward=some)
    before = flat(z_of(trainer))
    trainer.train()
    moved = flat(z_of(trainer)) - before
    assert moved.isfinite().all()
    assert moved.abs().max() > 0
    assert trainer.state.log_history[0]["unscorable"] > 0.3
    nothing = evolving(reward=lambda completion_ids, **_: [None] * len(completion_ids))
    nothing.train()
    assert torch.equal(flat(z_of(nothing)), before)
    assert nothing.state.log_history[0]["loss"] == 0


def test_completions_that_were_cut_can_be_left_out(evolving: Make, z_of: Z, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = evolving(mask_truncated_completions=True)
    inner, before = trainer._answer, flat(z_of(trainer))

    def cut(*arguments: Any) -> list[Any]:
        return [type(c)(c.token_ids, None, False) for c in inner(*arguments)]

    monkeypatch.setattr(trainer, "_answer", cut)
    trainer.train()
    assert torch.equal(flat(z_of(trainer)), before)


def test_what_is_logged_has_a_meaning(evolving: Make) -> None:
    trainer = evolving(max_steps=2, luck=0.1, log_completions=True)
    trainer.train()
    lines = [line for line in read_metrics(Path(trainer.args.output_dir)) if "reward" in line]
    for line in lines:
        assert 0 <= line["fitness/min"] < line["reward"] < line["fitness/max"] <= 1
        assert 0 < line["fitness/std"] < line["fitness/max"] - line["fitness/min"]
        assert line["grad_norm"] > 0
        assert not [name for name in line if name in ("kl", "entropy") or name.startswith("sampling")]
    table = pd.read_parquet(sorted(Path(trainer.args.output_dir, "completions").glob("*.parquet"))[0])
    assert len(table) == MEMBERS * PROMPTS
    assert table["advantage"].abs().max() == 0.5


# ---- resuming --------------------------------------------------------------------------------------------------------


class CutOff(RuntimeError):
    pass


class CutOffAt(TrainerCallback):
    def __init__(self, step: int):
        self._step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step + 1 == self._step:
            raise CutOff


@pytest.mark.parametrize(
    ("cut", "settings"),
    [
        ((2, 4, 6), {"log_completions": True, "weight_decay": 0.1, "lr_scheduler_type": "linear"}),
        (
            (5,),
            {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 16, "evolution_fitness": "normalized"},
        ),
    ],
)
def test_a_run_that_was_cut_off_is_the_same_to_the_bit(
    evolving: Make, z_of: Z, tmp_path: Path, cut: tuple[int, ...], settings: dict[str, Any]
) -> None:
    own = {
        "luck": 0.1, "max_steps": 6, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch",
        "learning_rate": 0.02, "max_grad_norm": 1.0, "num_completions_to_print": 1, **settings,
    }  # fmt: skip
    whole = evolving(output_dir=str(tmp_path / "whole"), **own)
    whole.train()
    own["output_dir"] = str(tmp_path / "cut")
    for update in cut:
        with pytest.raises(CutOff):
            evolving(callbacks=[CutOffAt(update)], **own).train("auto")
    broken = evolving(**own)
    broken.train("auto")
    assert torch.equal(flat(z_of(whole)), flat(z_of(broken)))
    assert not torch.equal(flat(z_of(whole)), torch.ones_like(flat(z_of(whole))))
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "cut")
    tables = [sorted((tmp_path / name).glob("completions/*.parquet")) for name in ("whole", "cut")]
    assert [pd.read_parquet(path).to_json() for path in tables[0]] == [
        pd.read_parquet(path).to_json() for path in tables[1]
    ]
    with pytest.raises(SVFError, match="evolution_sigma"):
        evolving(**{**own, "evolution_sigma": 0.2}).train("auto")


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_share_out_the_population(tmp_path: Path, repository: Path) -> None:
    """The second process answers the second half of the rows; 3 prompts of 4 members do not divide by it."""
    evolve(tmp_path / "1", 12)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    folders = os.pathsep.join([str(repository), str(repository / "tests")])
    done = subprocess.run(
        [*command, evolving_process.__file__, str(tmp_path / "2"), "6"], capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": folders, "ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = [load_file(tmp_path / processes / "adapter_model.safetensors") for processes in ("1", "2")]
    names = [name for name in found[0] if "svf_z" in name]
    assert any((found[0][name] - 1).abs().max() > 0.01 for name in names)
    for name in names:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=0, atol=1e-6)
    first, second = (read_metrics(tmp_path / processes) for processes in ("1", "2"))
    assert [line["reward"] for line in first if "reward" in line] == pytest.approx(
        [line["reward"] for line in second if "reward" in line]
    )


# ---- what is refused -------------------------------------------------------------------------------------------------


NOT = "objective: evolution_strategies does not go with"
REFUSED = {
    "merged": ({"vllm_weights": "merged"}, f"{NOT} vllm_weights: merged"),
    "transformers": ({"use_vllm": False}, f"{NOT} use_vllm: false"),
    "server": (
        {"vllm_mode": "server", "vllm_server_base_url": "http://localhost:1"}, f"{NOT} vllm_mode: server"
    ),
    "tensor parallel": ({"vllm_tensor_parallel_size": 2}, f"{NOT} vllm_tensor_parallel_size above 1"),
    "KL": ({"beta": 0.1}, "objective: evolution_strategies has no KL term"),
    "odd": ({"num_generations": 5, "per_device_train_batch_size": 20}, "num_generations must be even, not 5"),
    "one": ({"num_generations": 1}, "num_generations must be even, not 1"),
    "iterations": ({"num_iterations": 2}, "remove num_iterations, steps_per_generation and generation_batch_size"),
    "generations": ({"steps_per_generation": 2}, "remove num_iterations, steps_per_generation"),
    "shaping": ({"evolution_fitness": "median"}, "evolution_fitness must be one of ranks, normalized, not 'median'"),
    "sigma": ({"evolution_sigma": 0.0}, "evolution_sigma must be above 0, not 0.0"),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_settings_that_do_not_suit(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    own = {"output_dir": str(tmp_path), "use_cpu": True, "beta": 0.0, **POPULATION, **settings}
    assert message in refusal(SVFReinforceConfig, **own)


def test_greedy_populations_are_taken(evolving: Make) -> None:
    trainer = evolving(temperature=0.0)
    trainer.train()
    assert trainer.state.log_history[0]["grad_norm"] > 0


def test_trainers_that_do_not_suit(evolving: Make, make_trainer: Make, scripted: Make) -> None:
    with pytest.raises(SVFError, match="EvolutionTrainer trains by objective evolution_strategies"):
        evolving(objective="policy_gradient")
    with pytest.raises(SVFError, match="needs a generator with adapters"):
        make_trainer(generator=scripted(), trainer_class=EvolutionTrainer, **POPULATION)
    with pytest.raises(SVFError, match="which an engine cannot hold for one adapter of many"):
        evolving(peft_config=SVFConfig(task_type="CAUSAL_LM", modules_to_save=["lm_head"])).train()


@pytest.fixture
def plan(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """The plan of the recipe for evolution strategies."""
    monkeypatch.chdir(tmp_path)
    recipe = repository / "recipes" / "quickstart_evolution.yaml"
    return lambda *overrides: check_recipe(load_recipe(recipe, overrides))


def test_the_dry_run_describes_it_and_names_what_is_not_read(plan: Make) -> None:
    got = plan("--advantage", "leave_one_out", "--kl_type", "k3", "--entropy_coef", "0.1")
    assert got.sequences_per_update == got.prompts_per_update * 64
    assert "advantage, entropy_coef, kl_type: not read for objective evolution_strategies" in got.notes
    assert "objective:      evolution strategies, population 64, sigma " in str(got)
    assert "KL" not in str(got)


def test_the_dry_run_refuses_what_the_run_would(plan: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = "vllm_weights: shared does not go with"
    assert refusal(plan, "--adapter", "lora") == f"{shared} an adapter other than SVF: set it to merged"
    assert refusal(plan, "--modules_to_save", "[lm_head]") == f"{shared} modules_to_save: set it to merged"
    assert f"{NOT} vllm_weights: merged" in refusal(plan, "--vllm_weights", "merged")
    assert "set beta to 0, not 0.1" in refusal(plan, "--beta", "0.1")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert "evolution_strategies has nothing for DeepSpeed to share out" in refusal(plan)
