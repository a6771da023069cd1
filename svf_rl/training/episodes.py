"""The episodes of a trainer: TRL's constructor finds tools and environments, and a `rollout_func` may take the loop's
place."""

import copy
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from svf_rl.episodes.episodes import Ask, Episodes, First
from svf_rl.episodes.rollout import Rollout
from svf_rl.episodes.toolbox import Toolbox
from svf_rl.errors import SVFError
from svf_rl.generation import Completion
from svf_rl.training.rollout_function import call_rollout_function

if TYPE_CHECKING:
    from svf_rl.training.trainer import SVFReinforceTrainer


class TrainerEpisodes(Episodes):
    """Plays the episodes of a trainer, whose tools, environments and `rollout_func` TRL's constructor has set up."""

    def __init__(self, trainer: "SVFReinforceTrainer") -> None:
        args = trainer.args
        together = args.use_vllm and args.vllm_mode == "colocate" and args.vllm_tensor_parallel_size > 1
        super().__init__(_toolbox_of(trainer), args.max_completion_length, together=together)
        self._trainer = trainer
        self._ask: Ask | None = None
        self.rows: list[dict[str, Any]] = []
        """Those that are being answered, for a `rollout_func` that reads more than their prompts."""

    def play(self, rows: list[dict[str, Any]], ask: Ask) -> Rollout:
        """As in [`Episodes`]; `trainer.environments` are those of the rows afterwards."""
        self.max_tokens, self.longest = self._trainer.sampling.max_tokens, self._positions()
        self._ask, self.rows = ask, rows
        try:
            return super().play(rows, ask)
        finally:
            self._ask = None

    def generate(
        self, prompt_ids: list[list[int]], places: Sequence[int] | None, turn: int, room: int
    ) -> list[Completion]:
        """As `trainer.generate`."""
        if self._ask is None:
            raise SVFError("trainer.generate is for a rollout_func, while it is called")
        chosen = range(len(prompt_ids)) if places is None else places
        if len(chosen) != len(prompt_ids) or not all(0 <= place < len(self.rows) for place in chosen):
            raise SVFError(
                f"trainer.generate was given {len(prompt_ids)} prompts and places {list(chosen)!r:.80}: give for each "
                f"which of the {len(self.rows)} prompts of the rollout_func it belongs to"
            )
        return self._ask(prompt_ids, chosen, turn, room)

    def _first(self, prompts: list[Any], ask: Ask) -> First:
        trainer = self._trainer
        trainer.environments, trainer._batch_environments = self.environments.current, self.environments.names
        if trainer.rollout_func is not None:
            return call_rollout_function(trainer, copy.deepcopy(prompts))
        return super()._first(prompts, ask)

    def _positions(self) -> int:
        config = self._trainer.accelerator.unwrap_model(self._trainer.model).config.get_text_config()
        limits = (
            getattr(self._trainer.generator, "max_length", None),
            getattr(config, "max_position_embeddings", None),
        )
        return min((limit for limit in limits if limit is not None), default=sys.maxsize)


def _toolbox_of(trainer: "SVFReinforceTrainer") -> Toolbox:
    return Toolbox(
        trainer._tokenizer,
        trainer.user_calls,
        trainer._standalone_tools,
        trainer._get_tool_suffix_ids,
        trainer.max_tool_calling_iterations,
        trainer.environment_factories,
        getattr(trainer, "_environment_pool", {}),
        getattr(trainer, "_env_tools", {}),
        {"chat_template": trainer.chat_template, **trainer.chat_template_kwargs},
    )
