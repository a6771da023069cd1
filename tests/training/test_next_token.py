"""Next-token training: the loss of right answers, what becomes of settings for policy gradient, and what is refused."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from fakes import refusal
from peft import LoraConfig, PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from svf_rl.errors import SVFError
from svf_rl.generation.prompts import encode_prompts
from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator
from svf_rl.quickstart import make_rows, model_path
from svf_rl.rewards import load_reward
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.settings.dry_run import DryRun, check_recipe
from svf_rl.settings.recipe import load_recipe
from svf_rl.svf import SVFConfig
from svf_rl.tasks.targets import end_of_turn, target_ids
from svf_rl.training.next_token import NextTokenTrainer
from svf_rl.training.trainer import SVFReinforceTrainer

ROWS = [
    {"prompt": [{"role": "user", "content": f"Add {i} and 7."}], "target": f"{i} + 7 = {i + 7} #### {i + 7}"}
    for i in range(1, 17)
]


def never(*_: Any, **__: Any) -> list[float]:
    raise AssertionError("no completion is drawn or graded in training")


@pytest.fixture
def next_token(tiny_llama: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> Callable[..., NextTokenTrainer]:
    """`next_token(**settings)`: a trainer of one update of plain SGD on 8 of the rows, without KL unless asked for."""

    def build(rows: list[dict[str, Any]] = ROWS, peft_config: Any = None, **settings: Any) -> NextTokenTrainer:
        class NoRollouts:
            stale, generate, sync = False, never, never

        defaults: dict[str, Any] = {
            "output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "per_device_train_batch_size": 8,
            "max_steps": 1, "max_completion_length": 48, "save_strategy": "no", "disable_tqdm": True, "beta": 0.0,
            "gradient_checkpointing": False, "learning_rate": 0.1, "optim": "sgd", "max_grad_norm": 0.0,
        }  # fmt: skip
        args = SVFReinforceConfig(objective="next_token", **{**defaults, **settings})
        config = peft_config or SVFConfig(task_type="CAUSAL_LM")
        data = Dataset.from_list(rows)
        return NextTokenTrainer(
            tiny_llama(), never, args, data, None, tokenizer, peft_config=config, generator=NoRollouts()
        )

    return build


def log_likelihoods(model: Any, tokenizer: Any, rows: list[dict[str, Any]], reduction: str) -> Tensor:
    """log p of each right answer and the end of the turn, sequence by sequence, from the logits."""
    values = []
    for row in rows:
        before = encode_prompts(tokenizer, [row["prompt"]])[0]
        after = [*tokenizer(row["target"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        logits = model(input_ids=torch.tensor([before + after])).logits[0, len(before) - 1 : -1].float()
        logps = logits.log_softmax(1).gather(1, torch.tensor(after)[:, None])
        values.append(logps.sum() if reduction == "sum" else logps.mean())
    return torch.stack(values)


# ---- the objective ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_loss_and_the_step_are_those_of_the_mean_log_likelihood(
    next_token: Any, tokenizer: Any, z_of: Any, tiny_llama: Any, reduction: str, accumulated: int
) -> None:
    trainer = next_token(
        rows=ROWS[:8], loss_reduction=reduction, per_device_train_batch_size=8 // accumulated,
        gradient_accumulation_steps=accumulated, temperature=0.5,  # which the loss must not see
    )  # fmt: skip
    by_hand = -log_likelihoods(trainer.model, tokenizer, ROWS[:8], reduction).mean()
    by_hand.backward()
    start = z_of(trainer)
    gradients = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.model.zero_grad()
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(by_hand.item(), rel=1e-5)
    for (_, gradient), (name, z) in zip(sorted(gradients.items()), sorted(z_of(trainer).items()), strict=True):
        torch.testing.assert_close(z, start[name] - 0.1 * gradient, rtol=0, atol=1e-5)
        assert gradient.abs().max() > 1e-4


def test_cross_entropy_is_reported_a_token_and_no_reward_is(next_token: Any, tokenizer: Any) -> None:
    trainer = next_token(rows=ROWS[:8])
    with torch.no_grad():
        total = -log_likelihoods(trainer.model, tokenizer, ROWS[:8], "sum").sum().item()
    trainer.train()
    line = trainer.state.log_history[0]
    tokens = sum(len(tokenizer(row["target"], add_special_tokens=False)["input_ids"]) + 1 for row in ROWS[:8])
    assert line["cross_entropy"] == pytest.approx(total / tokens, rel=1e-5)
    assert line["completions/mean_length"] == tokens / 8
    assert line["completions/clipped_ratio"] == 0
    assert not [name for name in line if name.startswith(("reward", "frac_reward", "unscorable"))]


def test_an_update_sees_each_answer_once_whatever_num_generations_says(next_token: Any) -> None:
    trainer = next_token(num_generations=4)
    seen = []
    inner = trainer._roll_out

    def recorded(rows: Any) -> Any:
        rollout = inner(rows)
        seen.extend(rollout.completion_ids)
        return rollout

    trainer._roll_out = recorded
    trainer.train()
    assert len(seen) == 8
    assert len({tuple(ids) for ids in seen}) == 8


def test_kl_is_measured_at_the_targets(next_token: Any) -> None:
    trainer = next_token(beta=0.5, max_steps=2, kl_type="k3", kl_placement="reward")
    trainer.train()
    first, second = (line for line in trainer.state.log_history if "kl" in line)
    assert first["kl"] == 0
    assert second["kl"] > 0


def test_lora_learns_the_answers_too(next_token: Any) -> None:
    config = LoraConfig(r=4, target_modules=["up_proj", "down_proj"], task_type="CAUSAL_LM")
    trainer = next_token(peft_config=config, max_steps=8, optim="adamw_torch", learning_rate=0.02)
    trainer.train()
    losses = [line["cross_entropy"] for line in trainer.state.log_history if "cross_entropy" in line]
    assert losses[-1] < 0.8 * losses[0]


def test_answers_that_are_too_long_are_cut_and_that_is_said_once(
    next_token: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = next_token(max_completion_length=5, max_steps=2)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert [r.getMessage() for r in caplog.records if "max_completion_length (5)" in r.getMessage()][1:] == []
    assert "are cut" in caplog.text
    line = trainer.state.log_history[0]
    assert line["completions/clipped_ratio"] == 1
    assert line["completions/max_length"] == 5


def test_cut_answers_can_be_left_out(next_token: Any, z_of: Any) -> None:
    trainer = next_token(max_completion_length=5, mask_truncated_completions=True)
    before = z_of(trainer)
    trainer.train()
    assert all(torch.equal(z, before[name]) for name, z in z_of(trainer).items())


@pytest.mark.parametrize(
    ("trainer", "objective", "said"),
    [
        (NextTokenTrainer, "policy_gradient", "NextTokenTrainer trains by objective next_token, and args.objective is"),
        (SVFReinforceTrainer, "next_token", "args.objective is next_token: that is NextTokenTrainer's"),
        (SVFReinforceTrainer, "evolution_strategies", "that is EvolutionTrainer's"),
    ],
)
def test_settings_of_another_objective_are_refused(
    next_token: Any, tokenizer: Any, trainer: Any, objective: str, said: str
) -> None:
    made = next_token()
    made.args.objective = objective
    with pytest.raises(SVFError, match=said):
        trainer(made.model, never, made.args, made.train_dataset, None, tokenizer, generator=made.generator)


@pytest.mark.parametrize("target", [5, None, "", ["a"]])
def test_a_target_that_is_no_text_is_named_before_the_first_step(next_token: Any, target: object) -> None:
    with pytest.raises(SVFError, match="train_dataset, row 0: objective next_token needs a text in column 'target'"):
        next_token(rows=[{**row, "target": target} for row in ROWS])


# ---- tokens ----------------------------------------------------------------------------------------------------------


def test_an_answer_goes_on_from_the_beginning_that_the_prompt_has_made(tokenizer: Any) -> None:
    begun = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "def g(x): return"}]
    ids = target_ids(tokenizer, begun, " x + 2", 3)
    assert ids[-1] == 3
    assert tokenizer.decode([*encode_prompts(tokenizer, [begun])[0], *ids[:-1]]).endswith("def g(x): return x + 2")
    assert tokenizer.decode(target_ids(tokenizer, "Q: 1 + 1 =", " 2", 3)[:-1]) == " 2"


def test_no_space_comes_before_a_word_that_goes_on(tokenizer: Any) -> None:
    """Some tokenizers begin every text with a space, even in mid-turn unless they see what stands before it."""
    pieces = {piece: i for i, piece in enumerate(["<unk>", "▁", "a", "b", "▁a", "▁b", "\n"])}
    inner = Tokenizer(models.BPE(vocab=pieces, merges=[("▁", "a"), ("▁", "b")], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    spaced = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    begun = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "a\n"}]
    assert spaced.convert_ids_to_tokens(target_ids(spaced, begun, "b", 0)) == ["b", "<unk>"]
    assert spaced.convert_ids_to_tokens(target_ids(spaced, begun[:1], "b", 0)) == ["▁b", "<unk>"]


def test_the_turn_ends_as_the_chat_template_ends_it(tokenizer: Any) -> None:
    template = "{% for m in messages %}{{ m['content'] }}<|user|>{% endfor %}"
    other = tokenizer.convert_tokens_to_ids("<|user|>")
    ends = [tokenizer.eos_token_id, other]
    assert end_of_turn(tokenizer, ends, {"chat_template": template}) == other
    assert end_of_turn(tokenizer, ends[:1], {"chat_template": template}) == tokenizer.eos_token_id
    assert end_of_turn(tokenizer, ends, {"chat_template": "{{ raise_exception('no') }}"}) == tokenizer.eos_token_id
    assert end_of_turn(tokenizer, ends, {}) == tokenizer.eos_token_id


# ---- settings and the dry run ----------------------------------------------------------------------------------------


@pytest.fixture
def plan(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DryRun]:
    """The plan of the quickstart recipe with `--objective next_token`."""
    monkeypatch.chdir(tmp_path)
    recipe = repository / "recipes" / "quickstart.yaml"
    return lambda *overrides: check_recipe(load_recipe(recipe, ["--objective", "next_token", *overrides]))


def test_a_recipe_for_policy_gradient_becomes_its_counterpart_and_says_what_changed(plan: Any) -> None:
    got = plan()
    assert (got.prompts_per_update, got.sequences_per_update, got.updates) == (64, 64, 30)
    assert got.notes == [
        "objective next_token: num_generations is 1, not 4",
        "objective next_token: advantage is none, not leave_one_out",
    ]
    assert "objective:      next-token, log-likelihood sum, KL 0.1" in str(got)
    assert "only of held-out answers" in str(got)
    assert "importance" not in str(got)
    notes = plan("--temperature", "0", "--kl_type", "k1", "--kl_placement", "reward", "--entropy_coef", "0.1").notes
    assert "objective next_token: entropy_coef is None, not 0.1" in notes
    assert "objective next_token: temperature is 1.0, not 0.0" in notes
    assert "objective next_token: kl_type is policy_ref, not k1" in notes
    assert "objective next_token: kl_placement is loss, not reward" in notes


def test_an_unknown_objective_and_settings_that_are_wrong_for_any(plan: Any, tmp_path: Path) -> None:
    known = "policy_gradient, next_token, evolution_strategies"
    assert refusal(plan, "--objective", "sft") == f"objective must be one of {known}, not 'sft'"
    assert "kl_type must be one of" in refusal(plan, "--kl_type", "k4")
    args = {"output_dir": str(tmp_path), "use_cpu": True, "objective": "next_token"}
    assert SVFReinforceConfig(**args, num_iterations=2).num_generations == 1  # no completions, so none is out of date


def test_rows_without_a_right_answer_are_named_before_the_run(plan: Any, tmp_path: Path) -> None:
    def own(rows: list[dict[str, Any]], *more: str) -> list[str]:
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return ["--task", "columns", "--data_path", "rows.jsonl", "--rewards", "length", "--train_items", "64", *more]

    bare = [{"prompt": f"{i}?"} for i in range(80)]
    assert refusal(plan, *own(bare)).startswith("columns (train): objective next_token needs targets to imitate")
    answered = [{**row, "answer": "7"} for row in bare]
    assert plan(*own(answered)).rows["train"] == 64
    for bad in ("", None, ["7"], 7):
        rows = [{**row, "target": bad} for row in answered]
        said = refusal(plan, *own(rows))  # the row of the file, of which the training rows are a shuffled part
        assert re.match(r"rows\.jsonl, row \d+: objective next_token needs a text in column 'target'", said)
    assert "needs a text in column 'answer'" in refusal(plan, *own([{**row, "answer": {"a": "7"}} for row in bare]))


def test_tasks_on_the_hub_are_known_to_have_targets(plan: Any) -> None:
    for task in ("gsm8k", "math", "mbpp", "arc_easy", "dispatch"):
        assert plan("--task", task).rows is None


# ---- a run -----------------------------------------------------------------------------------------------------------


@pytest.mark.vllm
def test_it_teaches_the_quickstart_its_care_and_saves_an_ordinary_adapter(
    vllm_engine: ColocatedVLLMGenerator, tokenizer: Any, tmp_path: Path
) -> None:
    def rows(split: str, count: int) -> Dataset:
        turns = make_rows("math", split, count)
        return Dataset.from_list([{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in turns])

    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    vllm_engine.sync(model.requires_grad_(False), everything=True)
    args = SVFReinforceConfig(
        objective="next_token", output_dir=str(tmp_path / "run"), use_cpu=True, report_to="none", use_vllm=True,
        per_device_train_batch_size=32, max_steps=12, learning_rate=1e-2, beta=0.1, max_grad_norm=1.0,
        max_completion_length=48, gradient_checkpointing=False, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = NextTokenTrainer(
        model, load_reward({"name": "numeric"}), args, rows("train", 384), rows("validation", 128), tokenizer,
        peft_config=SVFConfig(task_type="CAUSAL_LM"), generator=vllm_engine,
    )  # fmt: skip
    before = trainer.evaluate()["eval_accuracy"]
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    after = trainer.held_out.evaluate_saved(str(tmp_path / "adapter"), rows("test", 128))["test_accuracy"]
    assert after > before + 0.08
    base = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    trained = {n: p for n, p in trainer.model.named_parameters() if "svf_z" in n}
    saved = {n: p for n, p in loaded.named_parameters() if "svf_z" in n}
    assert trained
    assert all(torch.equal(p, saved[n]) for n, p in trained.items())
