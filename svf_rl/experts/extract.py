"""`svf-rl extract`: the SVF adapter that is nearest to a model which was trained in another way."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor
from tqdm import tqdm

from svf_rl.errors import SVFError
from svf_rl.generation.weights import as_stored
from svf_rl.models.arguments import ModelArguments
from svf_rl.models.loading import load_base
from svf_rl.storage.folders import check_new, new_folder
from svf_rl.svf import SVFConfig, svf_layers
from svf_rl.svf.checkpoint import stored_names
from svf_rl.svf.decompose import Factors
from svf_rl.svf.nearest import nearest_multiplier
from svf_rl.svf.stored_weights import StoredWeights, local_folder


@dataclass(frozen=True)
class Matrix:
    """One adapted matrix: the square of its change, and the share of that which the adapter's `z` makes."""

    path: str
    change: float
    share: float


@dataclass(frozen=True)
class Extracted:
    """
    What was found.

    Args:
        folder (`Path`): Of the adapter.
        matrices (`list[Matrix]`): The adapted ones.
        outside (`float`): The square of the change of all other weights that the two models have.
        missing (`list[str]`): Weights of the base model under whose names the other one has none.
    """

    folder: Path
    matrices: list[Matrix]
    outside: float
    missing: list[str]

    @property
    def inside(self) -> float:
        """The share of the change of the adapted matrices that `z` makes; 1 where they did not change."""
        total = sum(matrix.change for matrix in self.matrices)
        return sum(matrix.share * matrix.change for matrix in self.matrices) / total if total else 1.0

    @property
    def share(self) -> float:
        """The same of the change of all weights."""
        adapted = sum(matrix.change for matrix in self.matrices)
        return self.inside * adapted / (adapted + self.outside) if adapted + self.outside else 1.0

    def __str__(self) -> str:
        lines = [f"{self.folder}: {len(self.matrices)} matrices; their z makes {self.inside:.2%} of their change"]
        if self.outside:
            lines.append(f"{self.share:.2%} of the change of all weights: others changed too, which no z can hold")
        if self.missing:
            lines.append(f"note: not compared, for the tuned model lacks them: {', '.join(self.missing[:3])}")
        return "\n".join(lines)


def extract(base: ModelArguments, tuned: str, out: str | Path, targets: str = "mlp") -> Extracted:
    """
    Write the SVF adapter of `base` that is nearest to the model `tuned`, by least squares for each matrix. A `z` that
    was merged into it comes back.

    Args:
        base ([`ModelArguments`]): The model that the other one was made from.
        tuned (`str`): Folder, GGUF file or Hub name of a merged or fully trained model with the same architecture.
        out (`str` or `Path`): The folder to write; it must be free or empty.
        targets (`str`): As [`SVFConfig`] takes them.

    Raises:
        SVFError: a model is missing or damaged, they have other shapes, or `out` is taken. Nothing is left behind.
    """
    out = Path(out).expanduser()
    check_new(out)
    folder, _ = local_folder(ModelArguments(tuned).location, None)
    model: Any = load_base(base).requires_grad_(False)
    stored = StoredWeights(tuned, folder, getattr(model, "base_model_prefix", ""))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = stored_names(model, stored.names, parameters)
    adapted = get_peft_model(model, SVFConfig(target_modules=targets, task_type="CAUSAL_LM"))
    layers = {path.removeprefix("base_model.model."): layer for path, layer in svf_layers(adapted).items()}
    found = []
    with torch.no_grad(), tqdm(layers.items(), unit="matrix", leave=False) as bar:
        for path, layer in bar:
            bar.set_description(path)
            module = layer.get_base_layer()
            other = _read(stored, names[f"{path}.weight"], module.weight)
            change = other - module.weight.double()
            change = change.T if layer.transposed else change
            m, share = nearest_multiplier(Factors(*layer.svf_factors.tensors()), change)
            layer.svf_z["default"].weight.copy_(m)
            found.append(Matrix(path, change.square().sum().item(), share))
    inside = {f"{path}.weight" for path in layers}
    outside, missing, seen = 0.0, [], set[int]()
    for name, parameter in parameters.items():
        if name in inside:
            continue
        for key, own in as_stored(adapted, name, parameter).items():
            if stored.holds(key):
                outside += (_read(stored, key, own) - own.double()).square().sum().item()
            elif id(parameter) not in seen:  # of tied weights, files hold one
                missing.append(key)
        seen.add(id(parameter))
    with new_folder(out) as staging:
        adapted.save_pretrained(staging)
        (staging / "README.md").unlink(missing_ok=True)  # PEFT's, which says nothing of it
    return Extracted(out, found, outside, missing)


def _read(stored: StoredWeights, name: str, own: Tensor) -> Tensor:
    """In fp64. Raises `SVFError` where it is of another shape than the base model's own, quantised or not finite."""
    other = stored.read(name)
    if other.dtype.itemsize == 1 or not other.is_floating_point():
        raise SVFError(f"{name} is quantised in the tuned model ({other.dtype}): name the unquantised one")
    if not other.isfinite().all():
        raise SVFError(f"{name} of the tuned model is not finite: its training has failed, or the file is damaged")
    if other.shape != own.shape:
        raise SVFError(
            f"{name} has shape {tuple(other.shape)} in the tuned model and {tuple(own.shape)} in the base model: name "
            "the model that it was made from"
        )
    return other.double()
