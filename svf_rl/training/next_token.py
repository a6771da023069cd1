"""`NextTokenTrainer`: cross-entropy on right answers, the counterpart of policy gradient in an ablation.

The gradient of −Σ_t log p(y_t | x, y_<t) is that of REINFORCE when y is a right answer in place of a sample, with
advantage 1. So the trainer differs in where completions come from and in what they are worth, and in nothing else:
prompts, KL term, optimiser, held-out evaluation and checkpoints are those of [`SVFReinforceTrainer`]. Left out: packing
of several answers in a row, and dropping answers that are too long (they are cut).
"""

import logging
from typing import Any

import torch
from torch import Tensor
from trl.data_utils import is_conversational

from svf_rl.errors import SVFError
from svf_rl.losses.token_logprobs import TokenStatistics
from svf_rl.tasks.targets import end_of_turn, target_column, target_ids
from svf_rl.training.trainer import SVFReinforceTrainer

logger = logging.getLogger(__name__)


class NextTokenTrainer(SVFReinforceTrainer):
    """
    Trains an adapter by next-token prediction on the column `target` of the rows (or else `answer`).

    It takes the arguments of [`SVFReinforceTrainer`], with `SVFReinforceConfig(objective="next_token")`. Rewards grade
    the held-out items alone; none is computed in training. Beside its metrics there is `cross_entropy`, in nats a token
    of the right answers; `completions/...` are the lengths of these, and `completions/clipped_ratio` is the share that
    was cut at `max_completion_length`.
    """

    _name = "next-token training"
    _targets: list[list[int]]
    _said_cut = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.objective != "next_token":
            raise SVFError("NextTokenTrainer needs SVFReinforceConfig(objective='next_token')")
        template = {"chat_template": self.chat_template, **self.chat_template_kwargs}
        self._end_of_turn = end_of_turn(self._tokenizer, self.eos_token_ids, template)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        column = target_column(inputs[0], "the training rows")
        end = self._end_of_turn if is_conversational(inputs[0]) else self._tokenizer.eos_token_id
        self._targets = [target_ids(self._tokenizer, row["prompt"], row[column], end) for row in inputs]
        output = super()._generate_and_score_completions(inputs)
        metrics = self._metrics["train"]
        for name in [name for name in metrics if name.startswith(("reward", "frac_reward", "unscorable"))]:
            del metrics[name]  # constants here
        return output

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, *_: Any, **__: Any
    ) -> tuple[list[list[int]], None]:
        if images is not None:
            raise SVFError("images are not supported: use a text dataset")
        longest = self.sampling.max_tokens
        self._finished = [len(ids) <= longest for ids in self._targets]
        if not all(self._finished) and not self._said_cut:
            self._said_cut = True
            logger.warning(
                "right answers of more than max_completion_length (%d) tokens, such as one of %d, are cut: "
                "completions/clipped_ratio says how many",
                longest, max(map(len, self._targets)),
            )  # fmt: skip
        return [ids[:longest] for ids in self._targets], None

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids: Any) -> Tensor:
        """Every right answer is worth the same; held-out answers are graded."""
        if not self.model.training:
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids)
        shape = len(inputs) * self.accelerator.num_processes, len(self.reward_funcs)
        self._raw_rewards = torch.ones(shape, device=self.accelerator.device)
        return self._raw_rewards

    def _total_reward(self) -> Tensor:
        total = super()._total_reward()
        return torch.ones_like(total) if self.model.training else total

    def _statistics(self, model: Any, inputs: dict[str, Any], with_reference: bool) -> TokenStatistics:
        statistics = super()._statistics(model, inputs, with_reference)
        self._record("cross_entropy", -statistics.logps)
        return statistics
