"""What every search without gradients has in common: candidates are asked for, and their fitness is told.

Pure: `ask` gives candidates, `tell` takes their fitness, and who computes it does not concern this file::

    search = CrossEntropySearch(dimension=3, seed=0)
    for _ in range(10):
        search.tell([fitness(candidate) for candidate in search.ask()])
    search.best.vector

Member 0 of every generation is the best candidate so far, evaluated once more. A fitness from samples is noisy, and
the highest of many noisy figures is mostly luck: a best that kept its first figure would never be beaten. So the
figure of the best is the mean over all its evaluations, and another candidate takes its place when it is above that
mean and also above what the best reached in the same generation, on the same samples. Without noise this is the plain
"highest so far".
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from svf_rl.errors import SVFError
from svf_rl.storage.same_settings import check_same_settings

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Best:
    """
    The best candidate so far.

    Args:
        vector (`list[float]`): the candidate, `(dimension,)`.
        fitness (`float`): the mean over its evaluations.
        tie_break (`float` or `None`): the same of the second value; `None` where there was none.
        generation (`int`): the one that found it, from 0.
        evaluations (`int`): how often it has been evaluated.
    """

    vector: list[float]
    fitness: float
    tie_break: float | None
    generation: int
    evaluations: int = 1

    @property
    def rank(self) -> tuple[float, float]:
        return self.fitness, -math.inf if self.tie_break is None else self.tie_break

    def again(self, fitness: float, tie_break: float) -> "Best":
        """With one more evaluation. The mean is moved by the difference, so that equal figures leave it as it is."""
        count = self.evaluations + 1
        tie = self.tie_break
        if math.isfinite(tie_break):
            tie = tie_break if tie is None else tie + (tie_break - tie) / count
        return replace(self, fitness=self.fitness + (fitness - self.fitness) / count, tie_break=tie, evaluations=count)


class Search(ABC):
    """
    What both searches share: generations of candidates between `low` and `high`, and the best so far.

    The candidates of a generation are a function of the settings, of the seed and of what was told before: asked twice,
    a search gives the same ones, and one that was stored and loaded resumes bit by bit as the other would have.

    Args:
        dimension (`int`): numbers of a candidate.
        population (`int`, *optional*, defaults to 32): candidates a generation, the best so far among them.
        start (`float` or `Sequence[float]`, *optional*): member 0 of the first generation; default: the middle.
        low, high (`float`, *optional*, default to 0 and 1): bounds of every number.
        seed (`int`, *optional*, defaults to 0): decides what is drawn.

    Raises:
        SVFError: a setting is out of range.
    """

    kind: str  # in the state

    def __init__(
        self,
        dimension: int,
        *,
        population: int = 32,
        start: float | Sequence[float] | None = None,
        low: float = 0.0,
        high: float = 1.0,
        seed: int = 0,
    ):
        if dimension < 1:
            raise SVFError(f"a search needs at least 1 dimension, not {dimension}")
        if population < 2:
            raise SVFError(f"population must be at least 2, the best so far and another one, not {population}")
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise SVFError(f"low must be below high, and both finite: not {low} and {high}")
        if seed < 0:
            raise SVFError(f"seed must be 0 or more, not {seed}")
        self.dimension, self.population, self.low, self.high, self.seed = dimension, population, low, high, seed
        self.start = checked_vector("start", (low + high) / 2 if start is None else start, dimension)
        if self.start.min() < low or self.start.max() > high:
            raise SVFError(f"the start must lie between low ({low:g}) and high ({high:g})")
        self.generation = 0
        self._best: Best | None = None

    @property
    def best(self) -> Best:
        """The best candidate so far. Raises `SVFError` before the first generation was told."""
        if self._best is None:
            raise SVFError("the search knows no best candidate before its first generation is told")
        return self._best

    def ask(self) -> Vector:
        """The candidates of this generation, `(population, dimension)`. Member 0 is the best so far, in the first
        generation the start; the others are drawn."""
        generator = np.random.default_rng([self.seed, self.generation])
        drawn = self._draw(generator, (self.population - 1, self.dimension))
        first = self.start if self._best is None else np.array(self._best.vector)
        return np.concatenate([first[None], drawn.clip(self.low, self.high)])

    def tell(self, fitness: Sequence[float], tie_breaks: Sequence[float] | None = None) -> None:
        """
        Learn from the candidates that `ask` gave, and turn to the next generation.

        Args:
            fitness (`Sequence[float]`): of each candidate, higher is better. What is not finite ranks last.
            tie_breaks (`Sequence[float]`, *optional*): decide between equal fitness, higher first; what is not finite
                ranks last. Among candidates that are equal in both, the first is taken.

        Raises:
            SVFError: another number of values than candidates, or no finite fitness.
        """
        ties = [math.nan] * len(fitness) if tie_breaks is None else tie_breaks
        for name, values in (("fitness", fitness), ("tie_breaks", ties)):
            if len(values) != self.population:
                raise SVFError(f"{name} has {len(values)} values for {self.population} candidates")
        ranks = [
            (float(value) if math.isfinite(value) else -math.inf, float(tie) if math.isfinite(tie) else -math.inf)
            for value, tie in zip(fitness, ties, strict=True)
        ]
        order = sorted((i for i, rank in enumerate(ranks) if rank[0] > -math.inf), key=lambda i: ranks[i], reverse=True)
        if not order:
            raise SVFError("no candidate of this generation has a fitness that is a number")
        candidates = self.ask()
        self._choose_best(candidates, ranks, order[0])
        self._learn(candidates[order])
        self.generation += 1

    def _choose_best(self, candidates: Vector, ranks: Sequence[tuple[float, float]], top: int) -> None:
        challenger = Best(
            candidates[top].tolist(),
            ranks[top][0],
            ranks[top][1] if math.isfinite(ranks[top][1]) else None,
            self.generation,
        )
        if self._best is None:
            self._best = challenger
            return
        if math.isfinite(ranks[0][0]):  # the best could be evaluated once more
            self._best = self._best.again(*ranks[0])
        if top != 0 and challenger.rank > self._best.rank:
            self._best = challenger

    @abstractmethod
    def _draw(self, generator: np.random.Generator, shape: tuple[int, int]) -> Vector:
        """New candidates, which are clamped afterwards."""

    @abstractmethod
    def _learn(self, ranked: Vector) -> None:
        """Change the distribution after the candidates of a generation, best first."""

    def _settings(self) -> dict[str, Any]:
        """What decides the candidates beside what was told."""
        names = ("dimension", "population", "low", "high", "seed")
        return {"search": self.kind, **{name: getattr(self, name) for name in names}}

    def state_dict(self) -> dict[str, Any]:
        """All that the search needs to resume, as plain JSON."""
        return {
            "settings": self._settings(),
            "generation": self.generation,
            "best": None if self._best is None else asdict(self._best),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state_dict`. Raises `SVFError` when it is of another search, or damaged."""
        try:
            remedy = "give the same, or another folder"
            check_same_settings(state["settings"], self._settings(), "the stored search was made", remedy)
            self.generation = int(state["generation"])
            best = None if state["best"] is None else Best(**state["best"])
            if best is not None:
                checked_vector("best", best.vector, self.dimension)
            self._best = best
        except SVFError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SVFError(f"the stored search is damaged ({type(error).__name__}: {error}): remove it") from error


def checked_vector(name: str, value: float | Sequence[float], dimension: int) -> Vector:
    """`value` as `(dimension,)` numbers, one number for all of them. Raises `SVFError` where it is neither."""
    vector = np.asarray(value, dtype=np.float64)
    if vector.ndim == 0:
        vector = np.full(dimension, float(vector))
    if vector.shape != (dimension,) or not np.isfinite(vector).all():
        raise SVFError(f"{name} must be one number, or {dimension} of them, all finite")
    return vector
