"""What a verifier says about one completion."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """
    The result of one check.

    Args:
        correct (`bool` or `None`): whether the completion is right; `None` when that could not be found out.
        extracted (`str` or `None`): what was read as the answer; `None` where there was none.
        reason (`str`): why, in one line.
        score (`float`, *optional*): between 0 and 1; default: 1 for right, 0 for wrong. Only shaping rewards and the
            share of passed tests lie between.
        infrastructure (`bool`, *optional*, defaults to `False`): the check itself failed (a sandbox did not start, a
            worker died), which says nothing about the completion. Then `correct` is `None`.
    """

    correct: bool | None
    extracted: str | None
    reason: str
    score: float | None = None
    infrastructure: bool = False

    @property
    def value(self) -> float | None:
        """`score`, or 1.0 and 0.0 for right and wrong; `None` when not scorable."""
        return float(self.correct) if self.score is None and self.correct is not None else self.score
