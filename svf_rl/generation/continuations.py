"""Prompts joined with the continuations whose log-likelihood is asked for."""

from collections.abc import Sequence

from svf_rl.errors import SVFError


def joined(prompts: Sequence[list[int]], continuations: Sequence[list[int]], limit: int | None) -> list[list[int]]:
    """
    Each prompt with its continuation behind it.

    Args:
        prompts (`Sequence[list[int]]`), continuations (`Sequence[list[int]]`): token ids, one continuation a prompt.
        limit (`int`, *optional*): tokens that the generator takes, both together; `None` where it does not say.

    Raises:
        SVFError: their numbers differ, one is empty, or the two are longer than `limit`.
    """
    if len(prompts) != len(continuations):
        raise SVFError(f"{len(prompts)} prompts and {len(continuations)} continuations: give one to each prompt")
    sequences = []
    for index, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        for what, ids in (("prompt", prompt), ("continuation", continuation)):
            if not ids:
                raise SVFError(f"{what} {index} has no tokens: nothing to take a log-likelihood of; leave it out")
        length = len(prompt) + len(continuation)
        if limit is not None and length > limit:
            raise SVFError(
                f"prompt {index} and its continuation have {length} tokens, of {limit} that fit: shorten them, or "
                "give the generator a greater length"
            )
        sequences.append([*prompt, *continuation])
    return sequences
