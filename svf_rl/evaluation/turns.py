"""Items that are answered in several turns: with tools, or in an environment."""

import sys
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from svf_rl.episodes.episodes import Episodes
from svf_rl.episodes.rollout import Rollout
from svf_rl.episodes.toolbox import Toolbox, fill_toolbox
from svf_rl.episodes.user_calls import UserCalls
from svf_rl.evaluation.arguments import EvaluationArguments
from svf_rl.evaluation.items import Key, TaskItems
from svf_rl.experts.pool import ExpertPool
from svf_rl.generation import Completion, sample_seed
from svf_rl.settings.episodes import check_template, load_tools


def find_toolbox(arguments: EvaluationArguments, tokenizer: PreTrainedTokenizerBase) -> Toolbox | None:
    """The tools and environments that are asked for. Raises `SVFError` for what is not there, and for a model whose
    chat template knows no tools."""
    parts = load_tools(arguments)
    if not parts:
        return None
    check_template(tokenizer, parts)
    most = arguments.max_tool_calling_iterations
    return fill_toolbox(
        tokenizer,
        parts.tools,
        parts.environment_factory,
        UserCalls(arguments.tool_timeout),
        template=arguments.chat_template_kwargs,
        max_iterations=sys.maxsize if most is None else most,
        seed=arguments.seed,
    )


def play_items(
    episodes: Episodes,
    task: TaskItems,
    rows: list[dict[str, Any]],
    keys: Sequence[Key],
    pool: ExpertPool,
    seed: int,
    which: Sequence[str | None] | None = None,
) -> Rollout:
    """An episode of each of the completions `keys`, whose `rows` its environment may change, by the adapter that
    `which` names for it."""

    def ask(prompts: list[list[int]], places: Sequence[int], turn: int, room: int) -> list[Completion]:
        seeds = [sample_seed(seed, f"evaluation/{task.name}", *keys[place], turn) for place in places]
        chosen = None if which is None else [which[place] for place in places]
        return pool.generate(prompts, task.sampling.within(room), seeds, chosen)

    return episodes.play(rows, ask)
