"""What TRL's GRPO trainer takes of data, rewards and options, in our trainer: taken, or refused by name."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from fakes import read_metrics, refusal
from peft import LoraConfig, PeftModel
from transformers import EarlyStoppingCallback, TrainerCallback
from trl import GRPOConfig

from svf_rl.quickstart import model_path
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.svf import SVFConfig
from svf_rl.training.trainer import SVFReinforceTrainer

Make = Callable[..., Any]


@pytest.fixture
def build(make_trainer: Make, scripted: Make) -> Make:
    """`build(argument=…)`: a trainer of one step, with arguments of its constructor changed; `args` may be a dict."""
    ready = make_trainer(generator=scripted())
    defaults = {
        "model": None, "reward_funcs": ready.reward_funcs, "train_dataset": ready.train_dataset,
        "processing_class": ready.processing_class, "peft_config": SVFConfig(task_type="CAUSAL_LM"),
        "generator": scripted(),
    }  # fmt: skip

    def build(tiny: Any, **changes: Any) -> SVFReinforceTrainer:
        given = {**defaults, "model": tiny, "args": ready.args, **changes}
        return SVFReinforceTrainer(**{name: value for name, value in given.items() if value != "left out"})

    return build


def rows(count: int = 16, **more: Any) -> Dataset:
    return Dataset.from_list([{"prompt": f"How many? {i}", "item": i, **more} for i in range(count)])


def conversations(count: int = 16) -> Dataset:
    return Dataset.from_list([{"prompt": [{"role": "user", "content": f"How many? {i}"}]} for i in range(count)])


# ---- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [rows(), conversations()], ids=["text", "conversations"])
def test_prompts_are_texts_or_conversations(build: Make, tiny_llama: Make, data: Dataset) -> None:
    trainer = build(tiny_llama(), train_dataset=data)
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("kind", [dict, DatasetDict])
def test_several_held_out_sets_have_their_names_in_the_metrics(make_trainer: Make, scripted: Make, kind: type) -> None:
    sets = kind({"math": rows(3), "code": rows(5)})
    trainer = make_trainer(
        generator=scripted(), reward=lambda item, **_: [1.0 if i < 3 else 0.0 for i in item], max_steps=2,
        eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True,
        eval_items=1,
    )  # fmt: skip
    trainer.eval_dataset = sets
    trainer.train()
    seen = [line for line in read_metrics(Path(trainer.args.output_dir)) if "eval_math_accuracy" in line]
    assert [line["eval_math_accuracy"] for line in seen] == [1.0, 1.0]
    metrics = trainer.evaluate()
    assert metrics["eval_math_items"] == 3
    assert metrics["eval_code_accuracy"] == pytest.approx(0.6)
    assert metrics["eval_accuracy"] == pytest.approx(0.8)
    assert trainer.state.best_metric == pytest.approx(0.8)
    assert trainer.evaluate("code") == {k: v for k, v in metrics.items() if k.startswith("eval_code_")}


def test_several_sets_are_taken_by_the_constructor(build: Make, tiny_llama: Make) -> None:
    trainer = build(tiny_llama(), eval_dataset={"math": rows(3), "code": rows(5)})
    assert trainer.evaluate()["eval_code_items"] == 5


@pytest.mark.parametrize("argument", ["train_dataset", "eval_dataset"])
def test_iterables_are_refused_at_once(build: Make, tiny_llama: Make, argument: str) -> None:
    iterable = rows().to_iterable_dataset()
    assert f"{argument} is an IterableDataset" in refusal(build, tiny_llama(), **{argument: iterable})
    if argument == "eval_dataset":
        message = refusal(build, tiny_llama(), eval_dataset={"a": rows(), "b": iterable})
        assert "eval_dataset['b'] is an IterableDataset" in message
    assert f"{argument} must be a Dataset, not list" in refusal(build, tiny_llama(), **{argument: [{"prompt": "?"}]})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "train_dataset is missing"),
        (Dataset.from_list([{"question": "?"}] * 16), "train_dataset has no column 'prompt'; it has: question"),
        (rows(image="a.png"), "train_dataset: column 'image' of the data: images are not supported"),
        (rows(images=["a.png"]), "train_dataset: column 'images' of the data"),
        (rows(completions="x"), "column 'completions' of the data has the name of what rewards are given"),
        (rows(self="x"), "column 'self' of the data has the name of what rewards are given"),
    ],
)
def test_data_that_cannot_be_used(build: Make, tiny_llama: Make, data: Any, said: str) -> None:
    assert said in refusal(build, tiny_llama(), train_dataset=data)


def test_an_empty_dict_of_sets(build: Make, tiny_llama: Make) -> None:
    assert "eval_dataset is an empty dict" in refusal(build, tiny_llama(), eval_dataset={})


# ---- rewards ---------------------------------------------------------------------------------------------------------


def test_rewards_get_columns_completions_and_ways_to_log(build: Make, tiny_llama: Make) -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: Any, completions: Any, item: list[int], trainer_state: Any, **others: Any) -> list[float]:
        seen.update(others, step=trainer_state.global_step, item=item, same=len(prompts) == len(completions))
        others["log_extra"]("kept", item)
        others["log_metric"]("mine", 2.0)
        return [float(i % 2) for i in item]

    trainer = build(tiny_llama(), reward_funcs=reward)
    trainer.train()
    assert seen["same"]
    assert seen["step"] == 0
    assert trainer.state.log_history[0]["mine"] == 2.0


async def later(completions: list[Any], **_: Any) -> list[float]:
    return [1.0] * len(completions)


def test_async_rewards_and_several_of_them(build: Make, tiny_llama: Make, parity_reward: Any) -> None:
    trainer = build(tiny_llama(), reward_funcs=[later, parity_reward])
    trainer.train()
    assert trainer.state.log_history[0]["rewards/later/mean"] == 1.0


def test_a_reward_model_with_its_tokenizer(build: Make, tiny_llama: Make, tokenizer: Any) -> None:
    from transformers import LlamaForSequenceClassification

    config = tiny_llama().config
    config.num_labels, config._name_or_path = 1, "judge"
    judge = LlamaForSequenceClassification(config)
    trainer = build(tiny_llama(), reward_funcs=judge, reward_processing_classes=tokenizer)
    trainer.train()
    assert torch.isfinite(torch.tensor(trainer.state.log_history[0]["rewards/judge/mean"]))


@pytest.mark.parametrize("rewards", [None, []])
def test_without_a_reward(build: Make, tiny_llama: Make, rewards: Any) -> None:
    assert "reward_funcs is empty" in refusal(build, tiny_llama(), reward_funcs=rewards)


@pytest.mark.parametrize("count", [0, 7, 9])
def test_what_a_reward_logs_has_a_value_for_each_completion(build: Make, tiny_llama: Make, count: int) -> None:
    def reward(completions: list[Any], log_extra: Any, **_: Any) -> list[float]:
        log_extra("kept", ["x"] * count)
        return [1.0] * len(completions)

    trainer = build(tiny_llama(), reward_funcs=reward)
    assert f"log_extra('kept', ...) was given {count} values for 8 completions" in refusal(trainer.train)


def test_what_a_reward_logs_as_a_metric_is_a_number(build: Make, tiny_llama: Make) -> None:
    def reward(completions: list[Any], log_metric: Any, **_: Any) -> list[float]:
        log_metric("mine", "much")
        return [1.0] * len(completions)

    trainer = build(tiny_llama(), reward_funcs=reward)
    assert refusal(trainer.train) == "log_metric('mine', ...) was given 'much': give a number"


# ---- arguments -------------------------------------------------------------------------------------------------------


def test_settings_of_grpo_are_refused_by_name(build: Make, tiny_llama: Make, tmp_path: Path) -> None:
    args = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", bf16=False)
    assert "args is a GRPOConfig: give a SVFReinforceConfig" in refusal(build, tiny_llama(), args=args)


def test_without_settings_there_are_defaults(
    build: Make, tiny_llama: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny_llama()
    model.config._name_or_path = "somebody/tiny"
    assert build(model, args="left out").args.output_dir == "tiny-SVF"


@pytest.mark.parametrize(
    ("argument", "value", "said"),
    [
        ("tools", ["search"], "tools has 'search': give functions"),
        ("environment_factory", dict, "environment_factory makes a dict, which has no method reset"),
        ("rollout_func", "file.py:play", "rollout_func is a str: give a function"),
        ("peft_config", {"r": 1}, "peft_config must be a SVFConfig or another PeftConfig, not dict"),
        ("peft_config", None, "pass peft_config=SVFConfig()"),
    ],
)
def test_arguments_that_are_refused_say_what_to_do(
    build: Make, tiny_llama: Make, argument: str, value: Any, said: str
) -> None:
    assert said in refusal(build, tiny_llama(), **{argument: value})


@pytest.mark.parametrize("config", [SVFConfig(task_type="CAUSAL_LM"), LoraConfig(r=2, task_type="CAUSAL_LM")])
def test_an_adapter_that_was_loaded_to_be_used_is_not_trained_in_silence(
    build: Make, tiny_llama: Make, tmp_path: Path, config: Any
) -> None:
    build(tiny_llama(), peft_config=config).save_model(str(tmp_path / "adapter"))
    frozen = PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter")
    assert "is_trainable=True" in refusal(build, frozen, peft_config=None)
    trained = PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter", is_trainable=True)
    build(trained, peft_config=None).train()
    assert "has an adapter already" in refusal(build, trained, peft_config=config)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("use_liger_kernel", True, "Liger's kernels would replace the layers that SVF adapts"),
        ("cast_lm_head_to_fp32", True, "log-probabilities are computed in fp32"),
        ("use_adaptive_entropy", True, "entropy_coef is a bonus"),
        ("num_generations_eval", 2, "one greedy answer each"),
        ("remove_unused_columns", True, "rewards read all columns"),
        ("loss_type", "grpo", "has no meaning for SVF REINFORCE"),
    ],
)
def test_options_that_are_refused_say_why(make_trainer: Make, option: str, value: Any, said: str) -> None:
    message = refusal(make_trainer, **{option: value})
    assert message.startswith(option)
    assert said in message


# ---- callbacks -------------------------------------------------------------------------------------------------------


def test_callbacks_find_the_metric_that_they_are_given(make_trainer: Make, scripted: Make) -> None:
    """An evaluation has no loss; `metric_for_best_model` is the name that callbacks of transformers compare."""
    seen: list[dict[str, float]] = []

    class Watch(TrainerCallback):
        def on_evaluate(self, *_: Any, metrics: dict[str, float], **__: Any) -> None:
            seen.append(metrics)

    trainer = make_trainer(
        generator=scripted(), eval_items=4, max_steps=6, eval_strategy="steps", eval_steps=1, save_strategy="steps",
        save_steps=1, load_best_model_at_end=True, metric_for_best_model="reward",
        reward=lambda completion_ids, **_: [1.0] * len(completion_ids), callbacks=[EarlyStoppingCallback(1), Watch()],
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 2  # the second evaluation was no better
    assert all("eval_reward" in metrics and "eval_loss" not in metrics for metrics in seen)


@pytest.mark.parametrize(
    ("sets", "metric", "said"),
    [
        (rows(4), "eval_math_accuracy", "no evaluation set 'math': there is one set, without a name"),
        ({"math": rows(4)}, "eval_maths_accuracy", "no evaluation set 'maths': the sets are math"),
    ],
)
def test_a_set_that_there_is_not_cannot_choose_the_best(
    build: Make, tiny_llama: Make, sets: Any, metric: str, said: str
) -> None:
    trainer = build(tiny_llama())
    trainer.args.metric_for_best_model = metric
    assert said in refusal(build, tiny_llama(), args=trainer.args, eval_dataset=sets)


def test_rows_that_make_no_step_are_refused(build: Make, tiny_llama: Make) -> None:
    assert "train_dataset has no rows" in refusal(build, tiny_llama(), train_dataset=rows().select([]))
    assert "eval_dataset has no rows" in refusal(build, tiny_llama(), eval_dataset=rows().select([]))
    assert "1 training rows do not fill one generation batch" in refusal(
        build(tiny_llama(), train_dataset=rows(1)).train
    )


def test_a_reward_that_is_infinite_is_named(build: Make, tiny_llama: Make) -> None:
    def endless(completions: list[Any], **_: Any) -> list[float]:
        return [float("inf")] * len(completions)

    assert "reward 'endless' returned inf; return None" in refusal(build(tiny_llama(), reward_funcs=[endless]).train)


def test_a_loss_cannot_be_asked_for(make_trainer: Make) -> None:
    assert "has no loss" in refusal(make_trainer, metric_for_best_model="loss")


def test_the_page_counts_what_works(repository: Path) -> None:
    page = (repository / "docs/reference/peers.md").read_text()
    works = re.findall(r"^\| .* \| (yes|no) \| .*\|$", page, re.MULTILINE)
    assert f"{works.count('yes')} of these {len(works)} behaviours work" in page


def test_plain_rewards_have_the_rules_of_loaded_ones(build: Make, tiny_llama: Make) -> None:
    """They get what they name, columns never fill their options, and what they return is checked."""
    told: list[Any] = []

    def right(prompts: list[Any], completions: list[Any], *, limit: int = 40) -> tuple[float, ...]:
        told.append(limit)
        return tuple(float(len(prompts)) for _ in completions)

    rows = [{"prompt": "1 + 1 =", "limit": 1}] * 8
    build(tiny_llama(), reward_funcs=(right,), train_dataset=Dataset.from_list(rows)).train()
    assert set(told) == {40}


@pytest.mark.parametrize(
    ("said", "function"),
    [
        ("returned nan", lambda completions, **_: [float("nan")] * len(completions)),
        ("returned 1 values for", lambda completions, **_: [1.0]),
        ("each value must be a number", lambda completions, **_: ["good"] * len(completions)),
        ("raised ZeroDivisionError", lambda completions, **_: 1 / 0),
    ],
)
def test_what_plain_rewards_do_wrong_is_one_line(build: Make, tiny_llama: Make, said: str, function: Make) -> None:
    assert said in refusal(build(tiny_llama(), reward_funcs=function).train)


def test_registered_names_and_partial_functions_are_rewards(build: Make, tiny_llama: Make) -> None:
    def longer(completions: list[Any], than: int) -> list[float]:
        return [float(len(completion) > than) for completion in completions]

    rows = Dataset.from_list([{"prompt": "1 + 1 =", "answer": "2"}] * 8)
    trainer = build(tiny_llama(), reward_funcs=["numeric", partial(longer, than=3)], train_dataset=rows)
    trainer.train()
    assert {"rewards/numeric/mean", "rewards/longer/mean"} <= trainer.state.log_history[0].keys()


@pytest.mark.parametrize("place", ["train_dataset", "eval_dataset"])
def test_a_column_that_a_reward_needs_is_looked_for_at_once(build: Make, tiny_llama: Make, place: str) -> None:
    def right(completions: list[Any], answer: list[str]) -> list[float]:
        return [1.0 for _ in completions]

    whole = Dataset.from_list([{"prompt": "1 + 1 =", "answer": "2"}] * 8)
    rows = {"train_dataset": whole, "eval_dataset": whole, place: whole.remove_columns("answer")}
    assert f"{place}: reward 'right' needs the column 'answer'" in refusal(
        build, tiny_llama(), reward_funcs=right, **rows
    )


def test_models_that_are_none_and_predict_are_refused(build: Make, tiny_llama: Make, tmp_path: Path) -> None:
    assert "model must be a name, a folder or a loaded model" in refusal(build, None)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "is an adapter and not a model" in refusal(build, tmp_path)
    assert "there is no predict here" in refusal(build(tiny_llama()).predict, None)


def test_the_bundled_model_goes_by_its_name_and_by_its_path(build: Make) -> None:
    for model in ("quickstart", model_path()):
        assert build(model).model.get_base_model().config.model_type == "llama"


@pytest.mark.parametrize(("option", "value"), [("torch_compile", True), ("fsdp", "full_shard")])
def test_what_is_for_no_recipe_is_refused_here_too(option: str, value: Any, tmp_path: Path) -> None:
    assert f"{option}: " in refusal(SVFReinforceConfig, output_dir=str(tmp_path), use_cpu=True, **{option: value})
