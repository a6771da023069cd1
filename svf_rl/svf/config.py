"""`SVFConfig`: what is adapted, and how `z` becomes a multiplier of the singular values."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peft import PeftConfig

from svf_rl.described import described
from svf_rl.errors import SVFError
from svf_rl.svf.combine import check_record
from svf_rl.svf.core import DIAGONAL, make_core
from svf_rl.svf.targets import target_regex

_HOW_TO_LOAD = """## How to load it

PEFT does not know this method by itself, and ends with `KeyError: 'SVF'` (`pip install svf-rl`):

```python
import svf_rl.svf  # registers SVF with PEFT
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "THIS FOLDER")
```
"""


class _PeftTypeSVF(str):
    """The key `"SVF"` with the two attributes of an enum member: PEFT's own enum is closed to outside methods."""

    name = "SVF"
    value = "SVF"

    def __str__(self) -> str:  # as of a member: PEFT's model status takes what follows the dot
        return f"PeftType.{self.name}"

    def __format__(self, spec: str) -> str:  # in messages
        return format(self.name, spec)


PEFT_TYPE_SVF = _PeftTypeSVF("SVF")


LARGEST = 1e4
"""In size, of a `z` and of a multiplier: far above what any training reaches. `W'` of a larger one overflows, or is
noise."""


@dataclass
class SVFConfig(PeftConfig):
    """
    Configuration of singular value fine-tuning (Transformer², arXiv 2501.06252, section 3.1).

    Each targeted weight `W = U diag(s) Vᵀ` becomes `W' = U diag(s·m(z)) Vᵀ`. Only `z` is trained, with one value for
    each singular value, or as `core` says (`core.py`). What each field means stands in its `help`.
    """

    target_modules: list[str] | str | None = described(
        "mlp",
        "mlp, attention (query and value, as in the paper), mlp+attention, a regular expression that matches the whole "
        "module path, or a list of endings of module names. None: mlp.",
    )
    exclude_modules: list[str] | str | None = described(None, "Modules to leave out, matched like target_modules.")
    layers_to_transform: list[int] | int | None = described(None, "Adapt only the layers with these indices.")
    layers_pattern: list[str] | str | None = described(
        None, "Name of the list with the layers, where it is not found automatically."
    )
    modules_to_save: list[str] | None = described(None, "Modules that are trained in full and saved together with z.")
    core: str = described(
        DIAGONAL,
        "What is trained of each matrix. diagonal: a multiplier of every singular value. top:k, bottom:k: of the k "
        "largest, smallest. projected:n: n values for all matrices together, from which random fixed projections make "
        "the multipliers. band:w: multipliers, and what leads to neighbouring singular directions up to w away. "
        "block:k, block:k:bottom, block:k:random: a dense k by k matrix between k singular directions.",
    )
    core_seed: int = described(0, "Seed of the projections of projected:n and of the directions of block:k:random.")
    biases: bool = described(False, "Train a bias of each adapted matrix too. It starts at 0.")
    parameterization: Literal["direct", "sigmoid"] = described(
        "direct", "direct: m = z. sigmoid: m = max_multiplier * sigmoid(z), as in the reference implementation."
    )
    max_multiplier: float = described(2.0, "The largest multiplier m of the sigmoid.")
    renormalize: bool = described(False, "Scale m so that the sum of the singular values does not change.")
    init: Literal["identity", "random"] = described(
        "identity",
        "identity starts from m = 1, the base model. random adds Gaussian noise of init_std: around z = 1 (direct) or "
        "around z = init_mean (sigmoid), as in the reference implementation.",
    )
    init_mean: float = described(0.1, "Mean of the sigmoid's random start.")
    init_std: float = described(0.01, "Standard deviation of the random start.")
    base_fingerprint: str | None = described(
        None, "Digest of the adapted weights, written when an adapter is saved. Other weights refuse the adapter."
    )
    combination: dict[str, Any] | None = described(
        None, "The experts and weights that the adapter was combined from, written when it is made."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE_SVF
        # That of the model that is being saved. It is not the field itself, so that the configuration of one model can
        # be used for another.
        self._live_fingerprint: str | None = None
        self._awaits_values = False  # injected for a file whose values are not loaded yet
        self.from_file = False  # read by `from_pretrained` of this class, as PEFT does when it loads an adapter
        if self.target_modules is None:
            self.target_modules = "mlp"
        if isinstance(self.target_modules, str):
            self.target_modules = target_regex(self.target_modules, "target_modules")
        else:
            self.target_modules = sorted(set(self.target_modules))
        if isinstance(self.exclude_modules, str):
            self.exclude_modules = target_regex(self.exclude_modules, "exclude_modules")
        if self.parameterization not in ("direct", "sigmoid"):
            raise SVFError(f"parameterization must be 'direct' or 'sigmoid', not {self.parameterization!r:.300}")
        if type(self.core_seed) is not int:
            raise SVFError(f"core_seed must be an integer, not {self.core_seed!r:.100}")
        if isinstance(self.core, str) and self.core.startswith("block:"):
            self.core = self.core.removesuffix(":top")  # which it is without a word
        if self.core == DIAGONAL or not make_core(self.core, self.core_seed, "").draws:  # which refuses what is none
            self.core_seed = 0  # nothing reads it
        if self.core != DIAGONAL and (self.parameterization != "direct" or self.renormalize):
            raise SVFError(
                f"core: {self.core} goes with parameterization: direct and without renormalize: change them, or "
                "use core: diagonal"
            )
        if self.init not in ("identity", "random"):
            raise SVFError(f"init must be 'identity' or 'random', not {self.init!r:.300}")
        if self.parameterization == "sigmoid" and not 1 < self.max_multiplier <= LARGEST:
            raise SVFError(
                f"max_multiplier must be above 1 (m = 1 is the base model) and at most {LARGEST:g}, not "
                f"{self.max_multiplier}"
            )
        if not 0 <= self.init_std < math.inf:
            raise SVFError(f"init_std must be a number of at least 0, not {self.init_std}")
        if not math.isfinite(self.init_mean):
            raise SVFError(f"init_mean must be a finite number, not {self.init_mean}")
        if self.combination is not None:
            check_record(self.combination)
        if self.layers_pattern and self.layers_to_transform is None:
            raise SVFError("layers_pattern needs layers_to_transform: give the layer indices, or drop layers_pattern")

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> "SVFConfig":
        config: SVFConfig = super().from_pretrained(*args, **kwargs)
        config.from_file = True
        return config

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """As PEFT does, and say in the model card beside it what to import: PEFT itself ends with `KeyError: 'SVF'`."""
        super().save_pretrained(save_directory, **kwargs)
        card = Path(save_directory) / "README.md"
        if card.is_file() and "import svf_rl.svf" not in (text := card.read_text(encoding="utf-8")):
            card.write_text(f"{text.rstrip()}\n\n{_HOW_TO_LOAD}", encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Without the fields of other cores where there is none, as files were before there were any."""
        plain = {"core": DIAGONAL, "core_seed": 0, "biases": False}
        content = {**super().to_dict(), "base_fingerprint": self._live_fingerprint or self.base_fingerprint}
        return {name: value for name, value in content.items() if name not in plain or value != plain[name]}

    @property
    def is_multiplier(self) -> bool:
        """Whether an adapter is a multiplier of the singular values and nothing else (`modules_to_save` apart), which
        is what experts are: combined, and served by factors."""
        return not self.biases and (self.core == DIAGONAL or not make_core(self.core, self.core_seed, "").mixes)
