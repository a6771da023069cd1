"""Where two ways of running the same recipe first draw another token."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from svf_rl.generation import sample_seed


@dataclass(frozen=True)
class Difference:
    """The first token of a completion that is another one, or that one of the two does not have."""

    update: int
    prompt: int
    completion: int
    position: int
    tokens: tuple[int | None, int | None]
    logprob: float | None
    """Of the first way's token: near log ½, its neighbour was about as likely."""

    def __str__(self) -> str:
        one, other = ("the end" if token is None else f"token {token}" for token in self.tokens)
        return (
            f"update {self.update}, prompt {self.prompt}, completion {self.completion}, position {self.position}: "
            f"{one} (log p {self.logprob:.4f}), the other {other}"
        )


def differences(
    one: dict[str, Any], other: dict[str, Any], updates: int, sequences: int, a_prompt: int
) -> Iterator[Difference]:
    """
    The first difference of each completion, in the order of the run. Both hold completions as `replay.py` writes them,
    `sequences` an update, `a_prompt` of them for each prompt.
    """
    for update in range(1, updates + 1):
        for index in range(sequences):
            seed = str(sample_seed(0, "train", update - 1, index))
            (prompt, tokens, logprobs, _), (other_prompt, other_tokens, *_) = one[seed], other[seed]
            assert prompt == other_prompt, f"update {update}, completion {index}: another prompt"
            for position in range(max(len(tokens), len(other_tokens))):
                pair = tuple(ids[position] if position < len(ids) else None for ids in (tokens, other_tokens))
                if pair[0] != pair[1]:
                    logprob = logprobs[position] if pair[0] is not None else None
                    yield Difference(update, index // a_prompt, index % a_prompt, position, pair, logprob)
                    break


def report(name: str, found: list[Difference], updates: int, sequences: int) -> str:
    """Lines for a person to read."""
    if not found:
        return f"{name}: all tokens of {updates} updates are the same"
    by_update = [sum(d.update == update for d in found) for update in range(1, updates + 1)]
    return (
        f"{name}: first difference at {found[0]}\n"
        f"  completions of {sequences} that differ, by update: {' '.join(map(str, by_update))}"
    )
