"""Tools and environments: the episodes are those of TRL's GRPO trainer, token by token."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from episode_parts import Counter, Echo, acting, add, by_length, fails, later, questions, scripted
from trl import GRPOConfig, GRPOTrainer

__all__ = ["acting"]

Make = Callable[..., Any]


class ScriptedGRPO(GRPOTrainer):
    """TRL's own loop over what [`scripted`] writes."""

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
        write = scripted(self._tokenizer)
        completions = [write(ids, self.max_completion_length) for ids in prompt_ids]
        return [c.token_ids for c in completions], [c.logprobs for c in completions]


CASES: dict[str, dict[str, Any]] = {
    "tools": {"tools": [add, fails, later]},
    "one environment": {"environment_factory": Counter},
    "an environment and tools": {"environment_factory": Counter, "tools": [add, later]},
    "several environments": {"environment_factory": {"counter": Counter, "echo": Echo}, "tools": [add]},
    "two iterations": {"tools": [add, fails], "max_tool_calling_iterations": 2},
    "little room": {"tools": [add, fails, later], "max_completion_length": 44},
}


@pytest.mark.parametrize("case", CASES)
def test_tokens_and_masks_are_those_of_trls_own_loop(
    case: str, acting: Make, tiny_llama: Make, tokenizer: Any, tmp_path: Any
) -> None:
    settings = {**CASES[case]}
    limits = {"max_completion_length": settings.pop("max_completion_length", 200)}
    if "max_tool_calling_iterations" in settings:
        limits["max_tool_calling_iterations"] = settings.pop("max_tool_calling_iterations")
    rows = questions(32, start=lambda i: i, environment=lambda i: ("counter", "echo")[i % 2])
    seen: list[dict[str, Any]] = []

    def reward(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
        environments = [vars(e).copy() for e in columns.get("environments", [])]
        seen.append({"prompts": prompts, "completions": completions, "ids": completion_ids, "worlds": environments})
        return by_length(completions)

    wide = tiny_llama()
    wide.config.max_position_embeddings = 512
    theirs = ScriptedGRPO(
        wide, reward, train_dataset=rows, processing_class=tokenizer, **settings,
        args=GRPOConfig(
            output_dir=str(tmp_path), use_cpu=True, report_to="none", bf16=False, per_device_train_batch_size=32,
            num_generations=2, **limits,
        ),
    )  # fmt: skip
    wide = tiny_llama()
    wide.config.max_position_embeddings = 512
    ours = acting(
        rows, reward, model=wide, per_device_train_batch_size=32, num_generations=2, **limits, **settings
    )  # fmt: skip
    theirs.model.train()
    expected = theirs._generate_and_score_completions(list(rows))
    ours.recorder.seconds["rollout"], ours.current_gradient_accumulation_steps = 0.0, 1  # as a step begins
    found = ours._generate_and_score_completions(list(rows))
    assert torch.equal(found["prompt_ids"], expected["prompt_ids"])
    assert torch.equal(found["completion_ids"], expected["completion_ids"])
    assert torch.equal(found["completion_mask"], expected["completion_mask"])
    assert torch.equal(found["tool_mask"] * found["completion_mask"], expected["tool_mask"] * found["completion_mask"])
    assert torch.equal(found["sampling_per_token_logps"], expected["sampling_per_token_logps"])
    assert seen[0] == seen[1]
    assert ours.reward_func_names == theirs.reward_func_names
    for name in ("tools/call_frequency", "tools/failure_frequency", "completions/mean_length"):
        assert ours._metrics["train"][name] == pytest.approx(theirs._metrics["train"][name])
    for name in ours.reward_func_names:
        assert list(ours._logs["rewards"][name]) == pytest.approx(list(theirs._logs["rewards"][name]), nan_ok=True)
    counts = (found["completion_mask"] * (1 - found["tool_mask"])).sum(1)
    assert (counts > 0).sum() > 5  # tools have written something
    assert max(len(messages) for messages in seen[0]["completions"]) >= (3 if "little" in case else 5)
