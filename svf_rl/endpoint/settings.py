"""What an endpoint is started with, as its process finds it in the environment."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from svf_rl.adaptation.arguments import OTHER
from svf_rl.errors import SVFError
from svf_rl.rewards.verifiers.dispatch_label import LABELS

BASE, AUTO, CLASSIFIER = "base", "auto", "classifier"
"""Names of models that no expert can have."""
KEY = "SVF_RL_API_KEY"
"""Where the key is, without which an endpoint answers nothing but `/health`; none: it asks for none."""
_VARIABLE = "SVF_RL_ENDPOINT"


@dataclass(frozen=True)
class EndpointSettings:
    """
    Args:
        model (`str`): The base model, as vLLM names it.
        experts (`dict[str, str]`): Folders of adapters, or names on the Hub, by the names of models for requests.
        classifier (`str`, *optional*): The adapter that classifies; `None`: the base model does.
        system_prompt (`str`): Asks for the class.
        labels (`Sequence[str]`), examples (`Sequence`): The classes and worked examples of the classifier's training.
        adapters (`str`, *optional*): The only folder from which adapters are loaded at run time.
        revision (`str`, *optional*), trust_remote_code (`bool`): Of the base model, as [`ModelArguments`] has them.

    Raises:
        SVFError: no expert, or a name that a request could not give.
    """

    model: str
    experts: dict[str, str]
    classifier: str | None = None
    system_prompt: str = ""
    adapters: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    labels: Sequence[str] = LABELS
    examples: Sequence[dict[str, str]] = ()

    def __post_init__(self) -> None:
        if not self.experts:
            raise SVFError("name at least one expert, as in --expert math=runs/math")
        for name in self.experts:
            if name in (BASE, AUTO, CLASSIFIER, OTHER):
                raise SVFError(f"no expert can be called {name!r}, which stands for something else: rename it")
            if not name or not name.isprintable() or set(name) & set("+:=/, {}") or len(name) > 64:
                raise SVFError(
                    f"{name!r:.80} is no name for an expert: at most 64 characters, no space or + : = / , {{ }}"
                )

    @property
    def classes(self) -> tuple[str, ...]:
        """The answers of a classifier. Where an expert has another name than those that classifiers are trained to
        say, all are names of experts."""
        if set(self.experts) <= set(self.labels):
            return tuple(self.labels)
        return (*self.experts, OTHER)

    def to_environment(self) -> dict[str, str]:
        return {_VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls) -> "EndpointSettings":
        return cls(**json.loads(os.environ[_VARIABLE]))
