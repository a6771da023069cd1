"""`control`: rewards that teach nothing of the task, to compare a gain with.

Random rewards alone have been seen to raise benchmark scores by as much as right ones, where they sharpen what a model
does anyway (Shao et al., "Spurious Rewards", arXiv 2506.10947).
"""

import random
from collections.abc import Sequence
from typing import Any, Literal

from svf_rl.errors import SVFError
from svf_rl.rewards.registry import reward
from svf_rl.rewards.verifier import find_verifier, pay, verify_all


@reward("control", column_arguments=("column",))
def control(
    completions: Sequence[Any],
    *,
    kind: Literal["random", "shuffled", "constant"] = "random",
    verifier: str = "exact_match",
    text: str = "",
    share: float = 0.5,
    column: str = "answer",
    trainer_state: Any = None,
    **columns: Any,
) -> list[float | None]:
    """
    A reward that is not for being right.

    Args:
        kind (`str`, *optional*, defaults to `"random"`): `"random"` pays 1 or 0 by lot; `"shuffled"` pays each
            completion what the verifier gives another one of the batch; `"constant"` pays the completion that the
            verifier takes for `text`, whatever was asked.
        verifier (`str`, *optional*, defaults to `"exact_match"`): its name.
        text (`str`, *optional*): of `constant`.
        share (`float`, *optional*, defaults to 0.5): of `random`: how many are paid.
        column (`str`, *optional*, defaults to `"answer"`): the column with the references.
    """
    # by step and what was answered: a run that resumes goes on as it would have, and each seed draws its own lots
    lot = random.Random(f"{kind} {getattr(trainer_state, 'global_step', 0)} {list(completions)}")
    if kind == "random":
        return [float(lot.random() < share) for _ in completions]
    if kind == "constant" and not text:
        raise SVFError("reward 'control': kind: constant needs the text that is paid, as in text: '1, 2'")
    references = [text] * len(completions) if kind == "constant" else columns[column]
    as_reward = find_verifier(verifier).in_training  # as it grades when it pays itself
    values = pay(verifier, verify_all(verifier, completions, references, **as_reward), 1.0, 0.0, 0.25)
    if kind == "shuffled":
        lot.shuffle(values)
    return values
