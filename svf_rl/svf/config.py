"""`SVFConfig`: what is adapted, and how `z` becomes a multiplier of the singular values."""

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from peft import PeftConfig

from svf_rl.errors import SVFError
from svf_rl.svf.targets import TARGETS


class _PeftTypeSVF(str):
    """The key `"SVF"` with the two attributes of an enum member: PEFT's own enum is closed to outside methods."""

    name = "SVF"
    # transformers' `load_adapter` takes every parameter whose path holds the lower-case value for one that the adapter
    # file must bring: z, and not the factors beside it.
    value = "SVF_Z"


PEFT_TYPE_SVF = _PeftTypeSVF("SVF")


@dataclass
class SVFConfig(PeftConfig):
    """
    Configuration of singular value fine-tuning (Transformer², arXiv 2501.06252, section 3.1).

    Each targeted weight `W = U diag(s) Vᵀ` becomes `W' = U diag(s·m(z)) Vᵀ`; `z`, one value a singular value, is all
    that is trained.

    Args:
        target_modules (`str` or `list[str]`, *optional*, defaults to `"mlp"`):
            `"mlp"`, `"attention"` (query and value, as in the paper), `"mlp+attention"`, a regular expression matched
            against the whole module path, or a list of module-name endings.
        exclude_modules (`str` or `list[str]`, *optional*): Modules to leave alone, matched like `target_modules`.
        layers_to_transform (`int` or `list[int]`, *optional*): Adapt only the layers with these indices.
        layers_pattern (`str` or `list[str]`, *optional*):
            Name of the list that holds the layers, when it is not found by itself.
        modules_to_save (`list[str]`, *optional*): Modules trained in full and saved beside `z`.
        parameterization (`str`, *optional*, defaults to `"direct"`):
            `"direct"`: `m = z`. `"sigmoid"`: `m = max_multiplier · sigmoid(z)`, as in the reference implementation.
        max_multiplier (`float`, *optional*, defaults to `2.0`): The largest `m` of the sigmoid.
        renormalize (`bool`, *optional*, defaults to `False`): Scale `m` by `Σs / Σ(s·m)`, so that the sum of the
            singular values stays what it was.
        init (`str`, *optional*, defaults to `"identity"`):
            `"identity"` starts from `m = 1`, the base model. `"random"` adds Gaussian noise of `init_std`: around
            `z = 1` (direct) or around `z = init_mean` (sigmoid), as in the reference implementation.
        init_mean (`float`, *optional*, defaults to `0.1`): Mean of the sigmoid's random start.
        init_std (`float`, *optional*, defaults to `0.01`): Standard deviation of the random start.
        base_fingerprint (`str`, *optional*):
            Written when an adapter is saved: a digest of the weights it adapts. A model with other weights refuses it.
        combination (`dict`, *optional*):
            Written where an adapter was made of others: their names and their weights.
    """

    target_modules: list[str] | str | None = field(
        default="mlp",
        metadata={"help": "'mlp', 'attention', 'mlp+attention', a regular expression, or a list of module names."},
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules to leave alone."})
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Adapt only the layers with these indices."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the list that holds the layers."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained in full and saved beside z."}
    )
    parameterization: Literal["direct", "sigmoid"] = field(
        default="direct", metadata={"help": "'direct': m = z. 'sigmoid': m = max_multiplier * sigmoid(z)."}
    )
    max_multiplier: float = field(default=2.0, metadata={"help": "The largest multiplier of the sigmoid."})
    renormalize: bool = field(default=False, metadata={"help": "Keep the sum of the singular values."})
    init: Literal["identity", "random"] = field(
        default="identity", metadata={"help": "'identity': start from the base model. 'random': add Gaussian noise."}
    )
    init_mean: float = field(default=0.1, metadata={"help": "Mean of the sigmoid's random start."})
    init_std: float = field(default=0.01, metadata={"help": "Standard deviation of the random start."})
    base_fingerprint: str | None = field(
        default=None, metadata={"help": "Digest of the adapted weights, written when an adapter is saved."}
    )
    combination: dict[str, Any] | None = field(
        default=None, metadata={"help": "What an adapter was combined from, written when it is made."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE_SVF
        # Of the model that this copy was injected into. Apart from the field, so that the configuration of one model
        # can be used for another; what is saved is this one.
        self._live_fingerprint: str | None = None
        if isinstance(self.target_modules, str):
            self.target_modules = TARGETS.get(self.target_modules, self.target_modules)
            _compile(self.target_modules, "target_modules")
        elif self.target_modules is not None:
            self.target_modules = sorted(set(self.target_modules))
        if isinstance(self.exclude_modules, str):
            _compile(self.exclude_modules, "exclude_modules")
        if self.parameterization not in ("direct", "sigmoid"):
            raise SVFError(f"parameterization must be 'direct' or 'sigmoid', not {self.parameterization!r}")
        if self.init not in ("identity", "random"):
            raise SVFError(f"init must be 'identity' or 'random', not {self.init!r}")
        if self.parameterization == "sigmoid" and not 1 < self.max_multiplier < math.inf:
            raise SVFError(f"max_multiplier must be above 1 (m = 1 is the base model), not {self.max_multiplier}")
        if not 0 <= self.init_std < math.inf:
            raise SVFError(f"init_std must be a number of at least 0, not {self.init_std}")
        if not math.isfinite(self.init_mean):
            raise SVFError(f"init_mean must be a finite number, not {self.init_mean}")
        if self.layers_pattern is not None and self.layers_to_transform is None:
            raise SVFError("layers_pattern needs layers_to_transform: give the layer indices, or drop layers_pattern")

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "base_fingerprint": self._live_fingerprint or self.base_fingerprint}


def _compile(pattern: str, name: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise SVFError(f"{name}={pattern!r} is not a regular expression: {error}") from None
