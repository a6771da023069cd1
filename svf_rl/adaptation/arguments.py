"""What few-shot adaptation and dispatch are asked for. Nothing slow is imported here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

from svf_rl.adaptation.search import CrossEntropySearch, RandomSearch, Search
from svf_rl.described import described
from svf_rl.errors import SVFError
from svf_rl.evaluation.arguments import EvaluationArguments
from svf_rl.rewards.verifiers.dispatch_label import LABELS

OTHER = "other"


@dataclass(frozen=True)
class FitnessWeights:
    """
    The parts of the fitness; only their proportions matter.

    Raises:
        SVFError: a weight below 0 or not finite, or no weight above 0.
    """

    greedy: float = described(1.0, "Weight in the fitness of the accuracy of one greedy completion a prompt.")
    sampled: float = described(1.0, "Weight of the accuracy of the sampled completions.")
    # a right completion counts with the geometric mean of its tokens' probabilities, between 0 and 1, in place of 1
    likelihood: float = described(1.0, "Weight of the likelihood of the right completions.")

    def __post_init__(self) -> None:
        values = (self.greedy, self.sampled, self.likelihood)
        if not all(math.isfinite(value) and value >= 0 for value in values) or sum(values) == 0:
            raise SVFError(
                "the weights of the fitness (greedy, sampled, likelihood) must be 0 or more and not all 0, not "
                + ", ".join(f"{value:g}" for value in values)
            )


@dataclass(frozen=True)
class FewShotArguments:
    """
    How weights α of the experts are searched for. `std`, `momentum`, `min_std` and `high` are those of
    [`svf_rl.adaptation.search.CrossEntropySearch`]; the lower bound of α is 0.

    Raises:
        SVFError: a value is out of range, or two do not go together.
    """

    shots: int = described(10, "Labelled prompts that the search sees.")
    scope: Literal["global", "layer", "matrix"] = described(
        "global", "What has its own α: the whole model, a layer, or a matrix."
    )
    form: Literal["mask", "deviation"] = described(
        "deviation", "mask: Σ α m; deviation: 1 + Σ α (m - 1); the same where Σ α is 1."
    )
    normalized: bool = described(False, "Divide the α by their sum.")
    method: Literal["cem", "random"] = described("cem", "Of searching: the cross-entropy method, or random search.")
    population: int = described(16, "Candidates a generation.")
    generations: int = described(5, "Generations of the search.")
    std: float = 0.5
    momentum: float = 0.0
    min_std: float = 0.05
    high: float = 1.0
    chosen: Literal["best", "mean"] = described("best", "The best candidate, or the mean of the last elites.")
    samples: int = described(2, "Completions of each prompt beside the greedy one.")
    temperature: float = described(1.0, "Of the samples.")
    weights: FitnessWeights = field(default_factory=FitnessWeights)
    seed: int = described(0, "Of the labelled prompts, the candidates and the samples.")

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name in ("scope", "form", "method", "chosen"):
            known = get_args(hints[name])
            if getattr(self, name) not in known:
                raise SVFError(f"{name} must be {' or '.join(known)}, not {getattr(self, name)!r}")
        for name, least in (("shots", 1), ("generations", 1), ("samples", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise SVFError(f"{name} must be {least} or more, not {getattr(self, name)}")
        if self.samples > 0 and not 0 < self.temperature < math.inf:
            raise SVFError(f"temperature must be above 0, or the samples are all the same: not {self.temperature}")
        if self.samples == 0 and self.weights.sampled > 0:
            raise SVFError(
                "the fitness counts sampled completions and samples is 0: raise it, or set their weight to 0"
            )
        if self.chosen == "mean" and self.method == "random":
            raise SVFError("random search has no mean of elites: choose the best candidate")
        self.search(1, 1)

    def search(self, groups: int, experts: int) -> Search:
        """The search for `groups × experts` numbers, which starts at the plain mean of the experts."""
        size, start = groups * experts, min(1 / experts, self.high)
        common: dict[str, Any] = {"population": self.population, "high": self.high, "seed": self.seed}
        if self.method == "random":
            return RandomSearch(size, start=start, **common)
        return CrossEntropySearch(
            size, mean=start, std=self.std, momentum=self.momentum, min_std=self.min_std, **common
        )


@dataclass(frozen=True)
class DispatchArguments:
    """
    How prompts are classified and answered.

    Args:
        evaluation ([`EvaluationArguments`]): base model, task and how to generate; one sample an item, no adapters.
        experts (`Mapping[str, str]`): class to adapter folder or Hub name, such as `{"math": "runs/math"}`.

    Raises:
        SVFError: without a trained classifier, no classes or unknown ones; or what an evaluation is asked for does not
            suit.
    """

    evaluation: EvaluationArguments
    experts: Mapping[str, str]
    classifier: str | None = described(None, "A trained dispatch expert (default: the base model classifies).")
    method: str = described(
        "generate", "generate: read the class from what the classifier writes; loglikelihood: the likeliest one."
    )
    classifier_prompt: str | None = described(
        None, "System message that asks for the class (default: the classifier's own)."
    )
    classifier_tokens: int = described(256, "Of what the classifier writes.")
    prompts: str | None = described(
        None, "A file with a prompt a line, or rows with a column prompt (.jsonl, .csv, ...)."
    )

    def __post_init__(self) -> None:
        if self.classifier is None:  # what a trained one can answer stands in its folder
            check_classes(self.experts)
        if len(self.evaluation.tasks) != 1:
            raise SVFError(f"dispatch takes one task, not {len(self.evaluation.tasks)}")
        if self.evaluation.samples != 1:
            raise SVFError("dispatch answers each prompt once: leave samples out")
        if self.classifier_tokens < 1:
            raise SVFError(f"--classifier-tokens must be at least 1, not {self.classifier_tokens}")
        if self.prompts is not None and self.evaluation.reward is not None:
            raise SVFError("prompts of a file are not graded: for rows with answers give task columns and data_path")


def named_by_class(given: Sequence[str]) -> dict[str, str]:
    """From `CLASS=PATH` texts to paths by class. Raises `SVFError` for another form and for a class given twice."""
    experts: dict[str, str] = {}
    for text in given:
        label, equals, path = text.partition("=")
        if not (equals and label and path):
            raise SVFError(f"--expert {text}: give the class and its adapter, as in math=runs/math")
        if label in experts:
            raise SVFError(f"class {label!r} has two experts: give it one")
        experts[label] = path
    return experts


def check_classes(classes: Mapping[str, object], labels: Sequence[str] = LABELS) -> None:
    """Raises `SVFError` unless there are classes, and these are `labels` that experts answer."""
    known = [label for label in labels if label != OTHER]
    if not classes:
        raise SVFError(f"no class has an expert: name one, as in math=DIR (classes: {', '.join(known)})")
    for label in classes:
        if label == OTHER:
            raise SVFError(f"class {OTHER!r} is what the base model answers: it takes no expert; leave it out")
        if label not in known:
            raise SVFError(f"unknown class {label!r}: use one of {', '.join(known)}")
