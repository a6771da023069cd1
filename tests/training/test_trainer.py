"""The trainer as a whole: what it trains, reports, evaluates, keeps and refuses."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import Dataset
from fakes import FakeGenerator, read_metrics
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback

from svf_rl.errors import SVFError
from svf_rl.generation import Completion
from svf_rl.rewards import load_reward
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.svf import SVFConfig
from svf_rl.training.policy import reference
from svf_rl.training.trainer import SVFReinforceTrainer

Make = Callable[..., Any]
Z = Callable[[Any], dict[str, Tensor]]


def _moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return all(not torch.equal(before[name], after[name]) for name in before)


# ---- what trains -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_z_moves_and_nothing_else(make_trainer: Make, tiny_llama: Make, z_of: Z, tied: bool) -> None:
    trainer = make_trainer(tiny_llama(tied), advantage="leave_one_out", max_steps=2, beta=0.1)
    before = z_of(trainer)
    frozen = {n: p.clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    assert len(frozen) > 10
    trainer.train()
    assert _moved(before, z_of(trainer))
    assert all(torch.equal(p, frozen[n]) for n, p in trainer.model.named_parameters() if n in frozen)


def test_gpt2_trains(make_trainer: Make, tokenizer: Any, scripted: Make, z_of: Z) -> None:
    """Learnt positions and Conv1D."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=128, initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    trainer = make_trainer(GPT2LMHeadModel(config), generator=scripted(), beta=0.1)
    before = z_of(trainer)
    trainer.train()
    assert _moved(before, z_of(trainer))
    assert trainer.state.log_history[0]["kl"] == 0


def test_lora_trains_through_the_same_trainer(make_trainer: Make, scripted: Make) -> None:
    config = LoraConfig(r=2, target_modules=["up_proj", "down_proj"], task_type="CAUSAL_LM")
    trainer = make_trainer(peft_config=config, generator=scripted(), max_steps=2, beta=0.1)
    trained = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    trainer.train()
    now = dict(trainer.model.named_parameters())
    assert all(not torch.equal(p, now[n]) for n, p in trained.items())
    kl = [line["kl"] for line in trainer.state.log_history if "kl" in line]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[1] > 1e-6
    assert not any(key.startswith("z/") for line in read_metrics(Path(trainer.args.output_dir)) for key in line)


@pytest.mark.parametrize("module", ["norm", "lm_head"])
def test_modules_to_save_train_beside_z(make_trainer: Make, tiny_llama: Make, scripted: Make, module: str) -> None:
    """A trained output layer makes the logits, and the reference keeps the original one."""
    config = SVFConfig(modules_to_save=[module], task_type="CAUSAL_LM")
    trainer = make_trainer(tiny_llama(tied=False), peft_config=config, generator=scripted(), max_steps=2, beta=0.1)
    trained = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert any("modules_to_save" in name for name in trained)
    trainer.train()
    now = dict(trainer.model.named_parameters())
    assert all(not torch.equal(p, now[n]) for n, p in trained.items())
    assert [line["kl"] > 1e-6 for line in trainer.state.log_history if "kl" in line] == [False, True]
    model, row = trainer.model.eval(), torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        lp = model(input_ids=row).logits[0, 1:-1].double().log_softmax(1)
        with reference(model):
            lq = model(input_ids=row).logits[0, 1:-1].double().log_softmax(1)
        parts = {"prompt_ids": row[:, :2], "completion_ids": row[:, 2:]}
        masks = {name.replace("ids", "mask"): torch.ones_like(ids) for name, ids in parts.items()}
        kl = trainer.loss.statistics(model, {**parts, **masks}, with_reference=True).kl
    torch.testing.assert_close(kl.double(), (lp.exp() * (lp - lq)).sum(1), rtol=1e-3, atol=1e-6)


def test_a_model_that_has_its_adapter_already_goes_on_from_there(
    make_trainer: Make, tmp_path: Path, tiny_llama: Make, tokenizer: Any, scripted: Make, z_of: Z
) -> None:
    first = make_trainer(generator=scripted())
    first.train()
    first.save_model(str(tmp_path / "adapter"))
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter", is_trainable=True)
    first.args.output_dir = str(tmp_path / "second")
    second = SVFReinforceTrainer(
        model, first.reward_funcs[0], first.args, first.train_dataset, None, tokenizer, generator=scripted()
    )
    start = z_of(second)
    assert all(torch.equal(start[n], z) for n, z in z_of(first).items())
    second.train()
    assert _moved(start, z_of(second))


def test_gradient_checkpointing_gives_the_same_z(make_trainer: Make, scripted: Make, z_of: Z) -> None:
    results = []
    for checkpointing in (False, True):
        config = SVFConfig(init="random", init_std=0.0, task_type="CAUSAL_LM")
        trainer = make_trainer(
            peft_config=config, generator=scripted(), gradient_checkpointing=checkpointing, max_steps=2, beta=0.3
        )
        trainer.train()
        results.append(z_of(trainer))
    for name, z in results[0].items():
        assert not torch.equal(z, torch.ones_like(z))
        torch.testing.assert_close(z, results[1][name], rtol=0, atol=1e-6)


def test_without_an_adapter_there_is_nothing_to_train(
    make_trainer: Make, tiny_llama: Make, tokenizer: Any, scripted: Make
) -> None:
    other = make_trainer(generator=scripted())
    with pytest.raises(SVFError, match="pass peft_config=SVFConfig"):
        SVFReinforceTrainer(tiny_llama(), other.reward_funcs, other.args, other.train_dataset, None, tokenizer)


# ---- rewards ---------------------------------------------------------------------------------------------------------


def test_when_nothing_can_be_scored_z_stays(make_trainer: Make, scripted: Make, z_of: Z) -> None:
    trainer = make_trainer(
        generator=scripted(), reward=lambda completion_ids, **_: [None] * len(completion_ids), beta=0.3, max_steps=2,
        peft_config=SVFConfig(init="random", init_std=0.3, task_type="CAUSAL_LM"),
    )  # fmt: skip
    before = z_of(trainer)
    trainer.train()
    assert all(torch.equal(before[n], z) for n, z in z_of(trainer).items())
    lines = read_metrics(Path(trainer.args.output_dir))[:2]
    assert [line["unscorable"] for line in lines] == [1.0, 1.0]
    assert [line["reward"] for line in lines] == [None, None]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError('gold')", "reward 'f' raised KeyError"),
        ("return [1.0]", "reward 'f' returned 1 values for 8 completions"),
        ("return ['yes'] * len(completions)", "each value must be a number or None"),
    ],
)
def test_a_broken_reward_ends_the_run_with_one_line(
    make_trainer: Make, scripted: Make, tmp_path: Path, body: str, message: str
) -> None:
    (tmp_path / "mine.py").write_text(f"def f(completions, **kwargs):\n    {body}\n")
    trainer = make_trainer(generator=scripted(), reward=load_reward(f"{tmp_path / 'mine.py'}:f"))
    with pytest.raises(SVFError, match=message) as error:
        trainer.train()
    assert "\n" not in str(error.value)


def test_rewards_are_weighted_and_one_that_cannot_score_leaves_the_other(make_trainer: Make, scripted: Make) -> None:
    def first(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [1.0] * len(completion_ids)

    def second(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        return [None if i % 2 else 1.0 for i in range(len(completion_ids))]

    trainer = make_trainer(generator=scripted(), reward=[first, second], reward_weights=[1.0, 0.5])
    trainer.train()
    line = trainer.state.log_history[0]
    assert line["reward"] == pytest.approx(1.25)
    assert line["unscorable"] == 0


# ---- the reference pass ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({"beta": 0.0}, 1),
        ({"beta": 0.1}, 2),
        ({"beta": 0.0, "kl_placement": "reward"}, 1),
        ({"beta": 0.1, "kl_placement": "reward"}, 3),  # policy and reference for the reward, policy for the loss
    ],
)
def test_no_pass_is_run_that_is_not_needed(
    make_trainer: Make, scripted: Make, settings: dict[str, Any], passes: int
) -> None:
    trainer = make_trainer(generator=scripted(), **settings)
    calls: list[int] = []
    trainer.model.get_base_model().model.register_forward_hook(lambda *_: calls.append(1))
    trainer.train()
    assert len(calls) == passes


# ---- weight decay ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "identity"),
    [
        ({}, 1.0),
        ({"parameterization": "sigmoid"}, 0.0),
        ({"parameterization": "sigmoid", "max_multiplier": 4.0}, -math.log(3)),
    ],
)
@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_weight_decay_pulls_towards_the_base_model(
    make_trainer: Make, scripted: Make, z_of: Z, config: dict[str, Any], identity: float, optim: str
) -> None:
    """With no reward there is decay alone: the distance to the identity shrinks by lr · weight_decay a step."""
    trainer = make_trainer(
        generator=scripted(), reward=lambda completion_ids, **_: [0.0] * len(completion_ids), weight_decay=0.5,
        max_steps=2, optim=optim, peft_config=SVFConfig(init="random", init_std=0.3, task_type="CAUSAL_LM", **config),
    )  # fmt: skip
    before = z_of(trainer)
    trainer.train()
    for name, z in z_of(trainer).items():
        torch.testing.assert_close(z - identity, (before[name] - identity) * 0.95**2, rtol=1e-4, atol=1e-6)


def test_training_again_decays_once_a_step(make_trainer: Make, scripted: Make, z_of: Z) -> None:
    trainer = make_trainer(
        generator=scripted(), reward=lambda completion_ids, **_: [0.0] * len(completion_ids), weight_decay=0.5,
        peft_config=SVFConfig(init="random", init_std=0.3, task_type="CAUSAL_LM"),
    )  # fmt: skip
    before = z_of(trainer)
    trainer.train()
    trainer.train()
    for name, z in z_of(trainer).items():
        torch.testing.assert_close(z - 1, (before[name] - 1) * 0.95**2, rtol=1e-4, atol=1e-6)


# ---- evaluation ------------------------------------------------------------------------------------------------------


def test_held_out_accuracy_equals_an_independent_count(make_trainer: Make, parity_reward: Make, tokenizer: Any) -> None:
    trainer = make_trainer(eval_items=13)
    metrics = trainer.evaluate()
    model, answers = trainer.model.eval(), []
    for item in trainer.eval_dataset:
        ids = tokenizer(item["prompt"], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            output = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
        tokens = output[0, ids.shape[1] :].tolist()
        answers.append(tokens[: tokens.index(2) + 1] if 2 in tokens else tokens)
    rewards = parity_reward(answers)
    assert metrics["eval_items"] == 13
    assert metrics["eval_accuracy"] == pytest.approx(sum(r >= 0.5 for r in rewards) / 13)
    assert metrics["eval_reward"] == pytest.approx(sum(rewards) / 13)
    assert metrics["eval_completion_length"] == pytest.approx(sum(map(len, answers)) / 13)
    assert metrics["eval_clipped_ratio"] == pytest.approx(sum(a[-1] != 2 for a in answers) / 13)
    assert metrics["eval_unscorable"] == 0


def test_an_item_that_cannot_be_scored_counts_as_wrong(make_trainer: Make, scripted: Make) -> None:
    trainer = make_trainer(
        eval_items=8, generator=scripted(), reward=lambda item, **_: [None if i % 4 == 0 else 1.0 for i in item]
    )
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] == 0.75
    assert metrics["eval_unscorable"] == 0.25
    assert metrics["eval_reward"] == 1.0


def test_evaluation_is_greedy_syncs_first_and_leaves_training_alone(make_trainer: Make, scripted: Make) -> None:
    generator = scripted()
    trainer = make_trainer(eval_items=4, generator=generator, temperature=0.8, top_p=0.9)
    trainer.model.train()
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    trainer.evaluate()
    assert torch.equal(torch.rand(2), expected)
    assert trainer.model.training
    assert generator.syncs == 1
    assert (generator.requests[0].temperature, generator.requests[0].top_p) == (0.0, 1.0)
    trainer.evaluate()
    assert generator.syncs == 1  # nothing has changed
    generator.stale = True
    trainer.evaluate()
    assert generator.syncs == 2


def test_evaluation_without_items_is_refused(make_trainer: Make, scripted: Make) -> None:
    with pytest.raises(SVFError, match="eval_dataset"):
        make_trainer(generator=scripted()).evaluate()


def _graded(accuracies: list[float], training: Any) -> FakeGenerator:
    """Evaluations have given accuracies, whatever the model: the odd answers are right."""
    following = iter(accuracies)

    def answer(prompts: Any, sampling: Any, seeds: Any) -> list[Completion]:
        if sampling.temperature > 0:
            return training.generate(prompts, sampling, seeds)
        right = round(next(following) * len(prompts))
        return [Completion([11 if i < right else 12, 2], None, True) for i in range(len(prompts))]

    return FakeGenerator(answer)


def _odd(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(ids[0] % 2) for ids in completion_ids]


class _History(TrainerCallback):
    def __init__(self, read: Callable[[], Any]):
        self._read, self.values = read, {}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.values[state.global_step] = self._read()


EVALUATED = {
    "eval_items": 10, "reward": _odd, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps",
    "save_steps": 1, "load_best_model_at_end": True, "metric_for_best_model": "eval_accuracy",
}  # fmt: skip


def test_the_best_checkpoint_by_held_out_accuracy_is_loaded_at_the_end(
    make_trainer: Make, scripted: Make, z_of: Z
) -> None:
    history = _History(lambda: z_of(trainer))
    trainer = make_trainer(
        generator=_graded([0.3, 0.9, 0.9, 0.5], scripted()), callbacks=[history], max_steps=4, **EVALUATED
    )
    trainer.train()
    assert trainer.state.best_metric == pytest.approx(0.9)
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    end = z_of(trainer)
    assert all(torch.equal(end[n], z) for n, z in history.values[2].items())
    assert not any(torch.equal(end[n], z) for n, z in history.values[4].items())


def test_training_stops_when_it_no_longer_gets_better(make_trainer: Make, scripted: Make) -> None:
    trainer = make_trainer(
        generator=_graded([0.5, 0.6, 0.6, 0.4, 0.9], scripted()), max_steps=5, early_stopping_patience=2, **EVALUATED
    )
    trainer.train()
    assert trainer.state.global_step == 4


def test_what_a_reward_logs_in_an_evaluation_does_not_come_up_in_training(make_trainer: Make, scripted: Make) -> None:
    def talkative(completion_ids: list[list[int]], log_extra: Any, log_metric: Any, **_: Any) -> list[float]:
        log_extra("length", [len(ids) for ids in completion_ids])
        log_metric("calls", float(len(completion_ids)))
        return [1.0] * len(completion_ids)

    trainer = make_trainer(generator=scripted(), reward=talkative, eval_items=5, log_completions=True)
    trainer.evaluate()
    trainer.train()
    table = pd.read_parquet(Path(trainer.args.output_dir) / "completions" / "completions_00001.parquet")
    assert len(table) == 8
    assert trainer.state.log_history[-2]["calls"] == 8


# ---- metrics ---------------------------------------------------------------------------------------------------------

EVERY_STEP = {
    "reward", "reward_std", "unscorable", "kl", "entropy", "grad_norm", "completions/mean_length",
    "completions/clipped_ratio", "time/rollout", "time/reward", "time/sync", "time/update", "time/tokens_per_second",
    *(f"z/{kind}/{value}" for kind in ("gate_proj", "up_proj", "down_proj") for value in ("mean", "std", "min", "max")),
}  # fmt: skip


def test_every_step_reports_every_metric(make_trainer: Make, scripted: Make) -> None:
    generator = scripted(logprobs=lambda prompt, completion: [-5.0] * len(completion))
    trainer = make_trainer(
        generator=generator, use_vllm=True, beta=0.1, max_steps=3, gradient_accumulation_steps=2, eval_items=4,
        eval_strategy="steps", eval_steps=1, max_grad_norm=1.0,
    )  # fmt: skip
    trainer.train()
    lines = [json.loads(x) for x in (Path(trainer.args.output_dir) / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "reward" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    for line in steps:
        missing = (EVERY_STEP | {"sampling/logp_difference"}) - line.keys()
        assert not missing
        assert all(isinstance(line[key], float | int) and math.isfinite(line[key]) for key in EVERY_STEP)
    assert [line["step"] for line in lines if "eval_accuracy" in line] == [1, 2, 3]


def test_each_step_has_its_own_seconds_where_the_last_of_an_epoch_is_short(make_trainer: Make, scripted: Make) -> None:
    trainer = make_trainer(
        generator=scripted(), gradient_accumulation_steps=4, steps_per_generation=1, max_steps=5,
        train_rows=Dataset.from_list([{"prompt": f"How many? {i}", "item": i} for i in range(12)]),
    )  # fmt: skip
    counted: list[int] = []
    add, step = trainer.recorder.add, trainer.training_step
    trainer.recorder.add = lambda name, value: (counted.append(0) if name == "time/update" else None, add(name, value))
    trainer.training_step = lambda *given: (counted.append(1), step(*given))[1]
    trainer.train()
    assert counted == 2 * [1, 1, 1, 1, 0, 1, 1, 0] + [1, 1, 1, 1, 0]


def test_the_logp_difference_is_the_mean_distance_to_the_generator(make_trainer: Make, scripted: Make) -> None:
    """A generator that is sure of each token: the difference is the policy's own −log p, that of the loss."""
    generator = scripted(logprobs=lambda prompt, completion: [0.0] * len(completion))
    trainer = make_trainer(
        generator=generator, use_vllm=True, vllm_importance_sampling_correction=False, loss_reduction="mean",
        reward=lambda completion_ids, **_: [1.0] * len(completion_ids), per_device_train_batch_size=8,
    )  # fmt: skip
    trainer.train()
    line, tokens = trainer.state.log_history[0], sum(len(c) for _, c in generator.samples)
    per_token = trainer.state.log_history[0]["sampling/logp_difference"]
    assert 3 < per_token < 10
    assert tokens / 8 == line["completions/mean_length"]


def test_the_completions_are_kept_as_a_table(make_trainer: Make, scripted: Make) -> None:
    trainer = make_trainer(generator=scripted(), log_completions=True, max_steps=2, advantage="leave_one_out")
    trainer.train()
    table = pd.read_parquet(Path(trainer.args.output_dir) / "completions" / "completions_00002.parquet")
    assert {"step", "prompt", "completion", "plus_minus", "advantage"} <= set(table.columns)
    assert len(table) == 8
    for _, group in table.groupby("prompt"):
        others = (group["plus_minus"].sum() - group["plus_minus"]) / 3
        assert group["advantage"].tolist() == pytest.approx((group["plus_minus"] - others).tolist())


def test_one_seed_decides_everything(make_trainer: Make, z_of: Z) -> None:
    """CompletionGenerator by the model itself: the same lines and the same bits for one seed, others for another."""
    runs = []
    for seed in (3, 3, 4):
        trainer = make_trainer(
            seed=seed, max_steps=3, beta=0.1, advantage="leave_one_out", eval_items=4, eval_strategy="steps",
            eval_steps=2, gradient_accumulation_steps=2, per_device_train_batch_size=4,
            peft_config=SVFConfig(init="random", task_type="CAUSAL_LM"),
        )  # fmt: skip
        trainer.train()
        runs.append((read_metrics(Path(trainer.args.output_dir)), z_of(trainer)))
        torch.rand(17)  # whatever the process did in between
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(runs[0][1][n], z) for n, z in runs[1][1].items())
    assert runs[0][0] != runs[2][0]
    assert not any(torch.equal(runs[0][1][n], z) for n, z in runs[2][1].items())


def test_images_are_refused(make_trainer: Make, scripted: Make) -> None:
    trainer = make_trainer(generator=scripted())
    with pytest.raises(SVFError, match="images are not supported"):
        trainer._generate_and_score_completions([{"prompt": "What is this?", "image": "picture"}])


def test_the_settings_are_as_they_were_given(make_trainer: Make, scripted: Make) -> None:
    """What is hidden from TRL's constructor is back afterwards."""
    trainer = make_trainer(generator=scripted(), use_vllm=True, beta=0.3, temperature=0.0, num_generations=1)
    args: SVFReinforceConfig = trainer.args
    assert (args.use_vllm, args.beta, args.temperature) == (True, 0.3, 0.0)
    assert trainer.ref_model is None
    assert trainer.sampling.temperature == 0
    assert set(trainer.model.peft_config) == {"default"}


def test_the_table_of_completions_is_printed_now_and_then_with_few_rows(
    make_trainer: Make, scripted: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"log_completions": True, "max_steps": 4, "print_completions_steps": 2, "num_completions_to_print": 3}
    trainer = make_trainer(generator=scripted(), **own)
    trainer.train()
    printed = capsys.readouterr().out
    assert [step for step in range(1, 5) if f" Step {step} " in printed] == [2, 4]
    assert printed.count("How many?") < 2 * 4 * 6  # in a row at most five times
    assert len(list(Path(trainer.args.output_dir).glob("completions/*.parquet"))) == 4
