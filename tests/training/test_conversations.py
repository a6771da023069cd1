"""The trainer's prompts through the chat template, and stop strings in rewards, metrics and masks."""

from collections.abc import Callable
from typing import Any

import pytest
from datasets import Dataset
from fakes import FakeGenerator

from svf_rl.generation import Completion
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.svf import SVFConfig
from svf_rl.training.trainer import SVFReinforceTrainer

STOP = "\n```"
PROMPT = [{"role": "user", "content": "Write f."}, {"role": "assistant", "content": "```python\n"}]


def fenced(tokenizer: Any) -> FakeGenerator:
    """Completions of two kinds in turn: one that a stop string ended, and a longer one that was cut off."""
    stopped, cut_off = tokenizer("x = 12" + STOP)["input_ids"], tokenizer("y = 123456789")["input_ids"]
    kinds = [Completion(stopped, None, True), Completion(cut_off, None, False)]
    return FakeGenerator(lambda prompts, *_: [kinds[i % 2] for i in range(len(prompts))])


@pytest.fixture
def run(tiny_llama: Callable[..., Any], tokenizer: Any, tmp_path: Any) -> Callable[..., Any]:
    """`run(**settings)`: one update, and an evaluation; gives (trainer, rollouts, texts that the reward saw)."""

    def run(stop: tuple[str, ...] = (STOP,), **settings: Any) -> Any:
        seen: list[str] = []

        def reward(completions: list[Any], **_: Any) -> list[float]:
            seen.extend(completion[0]["content"] for completion in completions)
            return [float(index % 3) for index in range(len(completions))]

        generator = fenced(tokenizer)
        trainer = SVFReinforceTrainer(
            tiny_llama(),
            reward,
            SVFReinforceConfig(
                output_dir=str(tmp_path / f"run-{len(list(tmp_path.iterdir()))}"),
                use_cpu=True, report_to="none", per_device_train_batch_size=4,
                num_generations=2, max_steps=1, save_strategy="no", disable_tqdm=True, gradient_checkpointing=False,
                **settings,
            ),
            Dataset.from_list([{"prompt": PROMPT}] * 4),
            Dataset.from_list([{"prompt": PROMPT}] * 3),
            tokenizer,
            peft_config=SVFConfig(task_type="CAUSAL_LM"),
            generator=generator,
            stop=stop,
        )  # fmt: skip
        trainer.train()
        return trainer, generator, seen

    return run


def test_a_begun_answer_is_part_of_the_prompt(run: Callable[..., Any], tokenizer: Any) -> None:
    trainer, generator, _ = run()
    trainer.evaluate()
    assert {tokenizer.decode(ids) for ids, _ in generator.samples} == {
        "<|begin|><|user|>Write f.<|end|><|assistant|>```python\n"
    }
    assert {request.stop for request in generator.requests} == {(STOP,)}


def test_rewards_see_the_text_before_the_stop_string(run: Callable[..., Any]) -> None:
    trainer, _, seen = run()
    trainer.evaluate()
    assert set(seen) == {"x = 12", "y = 123456789"}
    _, _, whole = run(stop=())
    assert set(whole) == {"x = 12" + STOP, "y = 123456789"}


def test_a_stopped_completion_does_not_count_as_cut_off(run: Callable[..., Any]) -> None:
    trainer, generator, _ = run()
    log = trainer.state.log_history[0]
    assert log["completions/clipped_ratio"] == 0.5
    lengths = [len(tokens) for _, tokens in generator.samples[:2]]
    for which in ("mean", "min", "max"):
        assert log[f"completions/{which}_terminated_length"] == lengths[0]
    assert log["completions/max_length"] == max(lengths)
    assert trainer.evaluate()["eval_clipped_ratio"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(("mask", "sequences"), [(False, 4), (True, 2)])
def test_only_what_was_cut_off_is_left_out_of_training(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, mask: bool, sequences: int
) -> None:
    batches = []
    original = SVFReinforceTrainer._generate_and_score_completions

    def recorded(self: Any, inputs: Any) -> Any:
        batches.append(original(self, inputs))
        return batches[-1]

    monkeypatch.setattr(SVFReinforceTrainer, "_generate_and_score_completions", recorded)
    _, generator, _ = run(mask_truncated_completions=mask)
    trained = batches[0]["completion_mask"].sum(1).tolist()
    lengths = [len(tokens) for _, tokens in generator.samples[:2]]
    assert float(batches[0]["sequences"]) == sequences
    assert trained == ([lengths[0], 0] * 2 if mask else lengths * 2)


def test_a_mixture_is_evaluated_task_by_task(run: Callable[..., Any]) -> None:
    trainer, _, _ = run()
    rows = [{"prompt": PROMPT, "task": task, "verifier": "numeric"} for task in ("a", "a", "b", "a", "b")]
    metrics = trainer.evaluate(Dataset.from_list(rows), metric_key_prefix="test")
    # the reward gives 0, 1, 2, 0, 1
    assert metrics["test_accuracy/a"] == pytest.approx(1 / 3)
    assert metrics["test_accuracy/b"] == 1.0
    assert metrics["test_accuracy"] == pytest.approx(3 / 5)
