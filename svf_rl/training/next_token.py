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

from svf_rl.episodes.rollout import Rollout
from svf_rl.errors import SVFError
from svf_rl.generation import Completion
from svf_rl.tasks.targets import check_targets, end_of_turn, target_column, target_ids
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
    _objective = "next_token"
    _said_cut = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in ("tools", "environment_factory", "rollout_func"):
            if kwargs.get(name):
                raise SVFError(f"objective: next_token trains on right answers of one turn: remove {name}")
        super().__init__(*args, **kwargs)
        if self.train_dataset is not None:
            check_targets(self.train_dataset, "train_dataset", "train_dataset, row {}".format)
        template = {"chat_template": self.chat_template, **self.chat_template_kwargs}
        self._end_of_turn = end_of_turn(self._tokenizer, self.eos_token_ids, template)

    def _roll_out(self, rows: list[dict[str, Any]]) -> Rollout:
        """Each row's right answer, cut where it is too long."""
        prompts, longest = [row["prompt"] for row in rows], self.sampling.max_tokens
        column = target_column(rows[0], "the training rows")
        end = self._tokenizer.eos_token_id if isinstance(prompts[0], str) else self._end_of_turn
        targets = [target_ids(self._tokenizer, row["prompt"], row[column], end) for row in rows]
        completions = [Completion(target[:longest], None, len(target) <= longest) for target in targets]
        if not self._said_cut and not all(completion.finished for completion in completions):
            self._said_cut = True
            logger.warning(
                "right answers of more than max_completion_length (%d) tokens, such as one of %d, are cut: "
                "completions/clipped_ratio says how many",
                longest, max(map(len, targets)),
            )  # fmt: skip
        return Rollout.of(prompts, self.tokenize(prompts), completions, self._tokenizer)

    def _score_rollout(self, rows: list[dict[str, Any]], rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Every right answer is worth the same; held-out answers are graded."""
        number = len(rows) * self.accelerator.num_processes
        ones = torch.ones(number, len(self.reward_funcs), device=self.accelerator.device)
        return ones, ones[:, 0]
