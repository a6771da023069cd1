"""From conversations to tokens and back: the chat template, and completions that end at a stop string."""

from typing import Any

import torch
from accelerate.utils import gather
from torch import Tensor
from trl import GRPOTrainer
from trl.data_utils import is_conversational

from svf_rl.generation import Sampling, cut_at_stop
from svf_rl.generation.prompts import encode_prompts


class Conversations(GRPOTrainer):
    """The part of the trainer that makes prompts, and that knows of stop strings, which TRL does not: there, whatever
    has no end-of-sequence token was cut off."""

    sampling: Sampling
    _finished: list[bool]
    """Whether each of the last completions ended by itself."""

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], Any, dict[str, Any]]:
        if not is_conversational({"prompt": prompts[0]}):
            return super()._tokenize_prompts(prompts)
        template = {"chat_template": self.chat_template, **self.chat_template_kwargs}
        return encode_prompts(self._tokenizer, prompts, **template), None, {}

    def _generate(self, prompts: list[Any]) -> Any:
        output = super()._generate(prompts)
        if self.sampling.stop:
            self._count_stopped_as_ended([len(ids) for ids in output[1]])
        return output

    def _count_stopped_as_ended(self, lengths: list[int]) -> None:
        """Replace TRL's metrics of completions that were cut off and of those that were not."""
        pairs = torch.tensor(list(zip(lengths, self._finished, strict=True)), device=self.accelerator.device)
        every_length, finished = gather(pairs).unbind(1)
        ended = every_length[finished.bool()].float()
        if len(ended) == 0:
            ended = torch.zeros(1)  # as TRL has it
        metrics = {
            "clipped_ratio": 1 - finished.float().mean(),
            "mean_terminated_length": ended.mean(),
            "min_terminated_length": ended.min(),
            "max_terminated_length": ended.max(),
        }
        for name, value in metrics.items():
            self._metrics["train"][f"completions/{name}"][-1] = value.item()

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids: Any) -> Tensor:
        """Rewards see the text before the stop string."""
        if self.sampling.stop:
            completions = [self._answer(completion) for completion in completions]
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids)

    def _answer(self, completion: Any) -> Any:
        if isinstance(completion, str):
            return cut_at_stop(completion, self.sampling.stop)
        return [
            {**message, "content": cut_at_stop(message.get("content") or "", self.sampling.stop)}
            for message in completion
        ]
