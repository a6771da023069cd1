"""Search without gradients for the vector of highest fitness: the cross-entropy method, and random search beside it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from svf_rl.adaptation.ask_tell import Search, Vector, checked_vector
from svf_rl.errors import SVFError


class CrossEntropySearch(Search):
    """
    The cross-entropy method (Rubinstein, Methodology and Computing in Applied Probability 1, 1999), as Transformer²
    (arXiv 2501.06252, section 3.2) takes it: candidates are drawn from a normal distribution with a mean and a standard
    deviation a number; those of the best ones, the elites, are the distribution of the next generation.

    Candidates beyond the bounds are clamped to them and not drawn again, so that a bound itself (an expert that is
    switched off) is a likely value and not one that is never met.

    Args:
        dimension, population, low, high, seed: see [`Search`].
        elites (`int`, *optional*): candidates that the distribution is learnt from; default: a fifth of the
            population, rounded down (6 of 32), and at least 1.
        mean (`float` or `Sequence[float]`, *optional*): of the first generation, and its member 0; default: the middle.
        std (`float`, *optional*, defaults to 0.5): of the first generation.
        momentum (`float`, *optional*, defaults to 0.0): share of the old mean and deviation in the new ones, 0 to 1.
        min_std (`float`, *optional*, defaults to 0.0): the deviation never falls below it, so that a search in which
            the elites are alike by chance still moves.

    Raises:
        SVFError: a setting is out of range.
    """

    kind = "cross_entropy"

    def __init__(
        self,
        dimension: int,
        *,
        population: int = 32,
        elites: int | None = None,
        mean: float | Sequence[float] | None = None,
        std: float = 0.5,
        low: float = 0.0,
        high: float = 1.0,
        momentum: float = 0.0,
        min_std: float = 0.0,
        seed: int = 0,
    ):
        super().__init__(dimension, population=population, start=mean, low=low, high=high, seed=seed)
        self.elites = max(1, int(0.2 * population)) if elites is None else elites
        if not 1 <= self.elites <= population:
            raise SVFError(f"elites must be between 1 and the population ({population}), not {self.elites}")
        if not 0 < std < math.inf:
            raise SVFError(f"std must be above 0, not {std}")
        if not 0 <= momentum < 1:
            raise SVFError(f"momentum must be at least 0 and below 1, not {momentum}")
        if not 0 <= min_std < math.inf:
            raise SVFError(f"min_std must be 0 or more, not {min_std}")
        self.first_std, self.momentum, self.min_std = std, momentum, min_std
        self.mean: Vector = self.start.copy()
        self.std: Vector = np.full(dimension, float(std))

    def _draw(self, generator: np.random.Generator, shape: tuple[int, int]) -> Vector:
        return self.mean + self.std * generator.standard_normal(shape)

    def _learn(self, ranked: Vector) -> None:
        elites = ranked[: self.elites]
        self.mean = self.momentum * self.mean + (1 - self.momentum) * elites.mean(axis=0)
        self.std = (self.momentum * self.std + (1 - self.momentum) * elites.std(axis=0)).clip(min=self.min_std)

    def _settings(self) -> dict[str, Any]:
        own = {"elites": self.elites, "mean": self.start.tolist(), "std": self.first_std}
        return {**super()._settings(), **own, "momentum": self.momentum, "min_std": self.min_std}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "mean": self.mean.tolist(), "std": self.std.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        try:
            mean, std = state["mean"], state["std"]
        except KeyError as error:
            raise SVFError(f"the stored search is damaged: it has no {error}; remove it") from error
        self.mean, self.std = checked_vector("mean", mean, self.dimension), checked_vector("std", std, self.dimension)


class RandomSearch(Search):
    """
    Candidates drawn evenly between the bounds, generation after generation: what the cross-entropy method has to beat
    with the same number of evaluations.

    Args:
        dimension, population, start, low, high, seed: see [`Search`].
    """

    kind = "random"

    def _draw(self, generator: np.random.Generator, shape: tuple[int, int]) -> Vector:
        return generator.uniform(self.low, self.high, shape)

    def _learn(self, ranked: Vector) -> None:
        pass

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "start": self.start.tolist()}
