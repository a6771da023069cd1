"""Search without gradients for the vector of highest fitness: the cross-entropy method, and random search beside it.

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
    """The best candidate so far."""

    vector: list[float]  # `(dimension,)`
    fitness: float  # the mean over its evaluations
    tie_break: float | None  # the same of the second value; `None` where there was none
    generation: int  # the one that found it, from 0
    evaluations: int = 1

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

    # what the state calls the search, its start, and the vectors that it learns
    kind: str
    start_name = "start"
    learnt: tuple[str, ...] = ()

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
        self.start = _checked_vector("start", (low + high) / 2 if start is None else start, dimension)
        if self.start.min() < low or self.start.max() > high:
            raise SVFError(f"the start must lie between low ({low:g}) and high ({high:g})")
        self.generation = 0
        self._best: Best | None = None
        # what decides the candidates beside what is told
        self._settings: dict[str, Any] = {
            "search": self.kind, "dimension": dimension, "population": population, "low": low, "high": high,
            "seed": seed, self.start_name: self.start.tolist(),
        }  # fmt: skip

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
        ties: Sequence[float | None] = [None] * len(fitness) if tie_breaks is None else tie_breaks
        for name, values in (("fitness", fitness), ("tie_breaks", ties)):
            if len(values) != self.population:
                raise SVFError(f"{name} has {len(values)} values for {self.population} candidates")
        ranks = [(_or_last(value), _or_last(tie)) for value, tie in zip(fitness, ties, strict=True)]
        order = sorted((i for i, rank in enumerate(ranks) if rank[0] > -math.inf), key=lambda i: ranks[i], reverse=True)
        if not order:
            raise SVFError("no candidate of this generation has a fitness that is a number")
        candidates, top = self.ask(), order[0]
        best = self._best
        if best is not None and math.isfinite(ranks[0][0]):  # the best could be evaluated once more
            best = best.again(*ranks[0])
        if best is None or (top != 0 and ranks[top] > (best.fitness, _or_last(best.tie_break))):
            value, tie = ranks[top]
            best = Best(candidates[top].tolist(), value, tie if math.isfinite(tie) else None, self.generation)
        self._best = best
        self._learn(candidates[order])
        self.generation += 1

    @abstractmethod
    def _draw(self, generator: np.random.Generator, shape: tuple[int, int]) -> Vector:
        """New candidates, which are clamped afterwards."""

    @abstractmethod
    def _learn(self, ranked: Vector) -> None:
        """Change the distribution after the candidates of a generation, best first."""

    def state_dict(self) -> dict[str, Any]:
        """All that the search needs to resume, as plain JSON."""
        best = None if self._best is None else asdict(self._best)
        learnt = {name: getattr(self, name).tolist() for name in self.learnt}
        return {"settings": self._settings, "generation": self.generation, "best": best, **learnt}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state_dict`. Raises `SVFError` when it is of another search, or damaged."""
        try:
            remedy = "give the same, or another folder"
            check_same_settings(state["settings"], self._settings, "the stored search was made", remedy)
            self.generation = int(state["generation"])
            self._best = None if state["best"] is None else Best(**state["best"])
            if self._best is not None:
                _checked_vector("best", self._best.vector, self.dimension)
            for name in self.learnt:
                setattr(self, name, _checked_vector(name, state[name], self.dimension))
        except SVFError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SVFError(f"the stored search is damaged ({type(error).__name__}: {error}): remove it") from error


class CrossEntropySearch(Search):
    """
    The cross-entropy method (Rubinstein, Methodology and Computing in Applied Probability 1, 1999), as Transformer²
    (arXiv 2501.06252, section 3.2) takes it: candidates are drawn from a normal distribution with a mean and a standard
    deviation a number; those of the best ones, the elites, are the distribution of the next generation.

    Candidates beyond the bounds are clamped to them and not drawn again, so that a bound itself (an expert that is
    switched off) is a likely value and not one that is never met.

    Args:
        elites (`int`, *optional*): candidates that the distribution is learnt from; default: a fifth of the
            population, rounded down (6 of 32), and at least 1.
        mean (`float` or `Sequence[float]`, *optional*): of the first generation, and its member 0; default: the middle.
        std (`float`, *optional*, defaults to 0.5): of the first generation.
        momentum (`float`, *optional*, defaults to 0.0): share of the old mean and deviation in the new ones, 0 to 1.
        min_std (`float`, *optional*, defaults to 0.0): the deviation never falls below it, so that a search in which
            the elites are alike by chance still moves.
        common: those of [`Search`].

    Raises:
        SVFError: a setting is out of range.
    """

    kind, start_name, learnt = "cross_entropy", "mean", ("mean", "std")

    def __init__(
        self,
        dimension: int,
        *,
        elites: int | None = None,
        mean: float | Sequence[float] | None = None,
        std: float = 0.5,
        momentum: float = 0.0,
        min_std: float = 0.0,
        **common: Any,
    ):
        super().__init__(dimension, start=mean, **common)
        self.elites = max(1, int(0.2 * self.population)) if elites is None else elites
        if not 1 <= self.elites <= self.population:
            raise SVFError(f"elites must be between 1 and the population ({self.population}), not {self.elites}")
        if not 0 < std < math.inf:
            raise SVFError(f"std must be above 0, not {std}")
        if not 0 <= momentum < 1:
            raise SVFError(f"momentum must be at least 0 and below 1, not {momentum}")
        if not 0 <= min_std < math.inf:
            raise SVFError(f"min_std must be 0 or more, not {min_std}")
        self.momentum, self.min_std = momentum, min_std
        self.mean: Vector = self.start.copy()
        self.std: Vector = np.full(dimension, float(std))
        self._settings |= {"elites": self.elites, "std": std, "momentum": momentum, "min_std": min_std}

    def _draw(self, generator: np.random.Generator, shape: tuple[int, int]) -> Vector:
        return self.mean + self.std * generator.standard_normal(shape)

    def _learn(self, ranked: Vector) -> None:
        elites = ranked[: self.elites]
        self.mean = self.momentum * self.mean + (1 - self.momentum) * elites.mean(axis=0)
        self.std = (self.momentum * self.std + (1 - self.momentum) * elites.std(axis=0)).clip(min=self.min_std)


class RandomSearch(Search):
    """Candidates drawn evenly between the bounds, generation after generation: what the cross-entropy method has to
    beat with the same number of evaluations."""

    kind = "random"

    def _draw(self, generator: np.random.Generator, shape: tuple[int, int]) -> Vector:
        return generator.uniform(self.low, self.high, shape)

    def _learn(self, ranked: Vector) -> None:
        pass


def _or_last(value: float | None) -> float:
    """The value, or what ranks last where it is missing or not finite."""
    return -math.inf if value is None or not math.isfinite(value) else float(value)


def _checked_vector(name: str, value: float | Sequence[float], dimension: int) -> Vector:
    """`value` as `(dimension,)` numbers, one number for all of them. Raises `SVFError` where it is neither."""
    vector = np.asarray(value, dtype=np.float64)
    if vector.ndim == 0:
        vector = np.full(dimension, float(vector))
    if vector.shape != (dimension,) or not np.isfinite(vector).all():
        raise SVFError(f"{name} must be one number, or {dimension} of them, all finite")
    return vector
