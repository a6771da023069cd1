"""What a `rollout_func` returns, checked: a user's function that makes whole episodes, in TRL's signature."""

from math import nan
from operator import index
from typing import TYPE_CHECKING, Any

from svf_rl.errors import Stopped, SVFError
from svf_rl.generation import Completion
from svf_rl.rewards.reward import TRAINER_ARGUMENTS
from svf_rl.rewards.user_code import describe

if TYPE_CHECKING:
    from svf_rl.training.trainer import SVFReinforceTrainer

_NEEDED = ("prompt_ids", "completion_ids", "logprobs")

Given = tuple[list[list[int]], list[Completion], list[list[int]] | None, dict[str, list[Any]]]


def call_rollout_function(trainer: "SVFReinforceTrainer", prompts: list[Any]) -> Given:
    """
    Call the trainer's `rollout_func` for the prompts of its rows.

    Returns:
        `tuple`: the tokens of the prompts; a completion each, finished where it ends with an end-of-sequence token, as
        TRL has it; the masks of `env_mask`, if it gave one; and for each other name one value a prompt.

    Raises:
        SVFError: what it raises, or returns in place of that, in one line.
    """
    assert trainer.rollout_func is not None
    try:
        output = trainer.rollout_func(prompts, trainer)
    except (SVFError, Stopped, KeyboardInterrupt):
        raise
    except BaseException as error:  # a user's code may raise anything
        raise SVFError(f"rollout_func raised {describe(error)}") from error
    if not isinstance(output, dict):
        raise SVFError(f"rollout_func returned {type(output).__name__}: return a dict of {', '.join(_NEEDED)}")
    for key in sorted(TRAINER_ARGUMENTS - {"completion_ids"} & output.keys()):
        raise SVFError(f"rollout_func returned {key!r}, the name of what rewards are given by the trainer: rename it")
    missing = [key for key in _NEEDED if key not in output]
    if missing:
        raise SVFError(f"rollout_func returned no {', '.join(missing)}: return a dict of {', '.join(_NEEDED)}")
    size = trainer.accelerator.unwrap_model(trainer.model).config.get_text_config().vocab_size
    prompt_ids, completion_ids = (_tokens(key, output[key], len(prompts), size) for key in _NEEDED[:2])
    logprobs, mask = (
        None if output.get(key) is None else _aligned(key, output[key], completion_ids)
        for key in ("logprobs", "env_mask")
    )
    try:
        known = None if logprobs is None else [[nan if p is None else float(p) for p in row] for row in logprobs]
    except (TypeError, ValueError):
        raise SVFError("rollout_func returned logprobs that are no numbers: return one for each token") from None
    ends = {*trainer.eos_token_ids, trainer._tokenizer.pad_token_id}
    completions = [
        Completion(ids, None if known is None else known[i], bool(ids) and ids[-1] in ends)
        for i, ids in enumerate(completion_ids)
    ]
    others = {key: value for key, value in output.items() if key not in (*_NEEDED, "env_mask")}
    extra = {key: _one_each(key, value, len(prompts)) for key, value in others.items()}
    return prompt_ids, completions, None if mask is None else [[int(bool(m)) for m in row] for row in mask], extra


def _tokens(key: str, rows: Any, count: int, vocabulary: int) -> list[list[int]]:
    rows = _list(rows)
    if not isinstance(rows, list) or len(rows) != count:
        found = f"{len(rows)} lists" if isinstance(rows, list) else type(rows).__name__
        raise SVFError(f"rollout_func returned {found} as {key} of {count} prompts: return a list of tokens for each")
    tokens = []
    for row in rows:
        try:
            tokens.append([index(token) for token in _list(row)])
        except TypeError:
            raise SVFError(f"rollout_func returned {row!r:.60} among {key}: each must be a list of token ids") from None
    other = next((token for row in tokens for token in row if not 0 <= token < vocabulary), None)
    if other is not None:
        raise SVFError(
            f"rollout_func returned {other} in {key}: the model's tokens are 0 to {vocabulary - 1}, and lists are not "
            "padded"
        )
    if key == "prompt_ids" and not all(tokens):
        raise SVFError("rollout_func returned a prompt without tokens in prompt_ids")
    return tokens


def _aligned(key: str, rows: Any, completion_ids: list[list[int]]) -> list[list[Any]] | None:
    rows = _list(rows)
    if rows is None or (isinstance(rows, list) and rows and all(row is None for row in rows)):
        return None
    rows = [_list(row) for row in rows] if isinstance(rows, list) else []
    lengths = [len(ids) for ids in completion_ids]
    if [len(row) if isinstance(row, list) else -1 for row in rows] != lengths:
        raise SVFError(f"rollout_func returned {key} that does not fit completion_ids: return one value for each token")
    return rows


def _list(value: Any) -> Any:
    """A list of a tensor, an array or a tuple."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return list(value) if isinstance(value, tuple) else value


def _one_each(key: str, value: Any, count: int) -> list[Any]:
    """A list has a value for each prompt; anything else is that of all."""
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise SVFError(f"rollout_func returned {len(value)} values of {key} for {count} prompts: return one for each")
    return value
