"""Weighted combinations of experts (Transformer², arXiv 2501.06252, section 3.2): `z' = Σ α_k z_k`, of masks.

Two forms, of the multipliers `m_k` of the singular values (never of the values before a sigmoid, which the published
code mixes):

- `mask`: `m' = Σ_k α_k m_k`, the paper's. The singular values grow with `Σ α`: weights that sum to 1 keep their size,
  others scale all of the adapted weights. Suitable where the weights are shares (a mean, a mixture), or where a search
  may use the scale as one more direction, as the paper's does.
- `deviation`: `m' = 1 + Σ_k α_k (m_k − 1)`. Each weight says how much of an expert's change is added to the base model;
  `α = 0` is the base model itself. Suitable where experts are added up (each may have weight 1), or switched off.

Both are the same where the weights sum to 1.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from svf_rl.errors import SVFError, one_line

SCOPES = ("global", "layer", "matrix")
FORMS = ("mask", "deviation")
_TOLERANCE = 1e-4  # of a sum of weights that were written with some decimals


def combine(masks: Tensor, alpha: Tensor, form: str = "mask") -> Tensor:
    """
    The multiplier of a combination; differentiable in `alpha`.

    Args:
        masks (`Tensor` of shape `(K, r)`): The experts' multipliers `m_k` of the singular values.
        alpha (`Tensor` of shape `(K,)`): Their weights.
        form (`str`, *optional*, defaults to `"mask"`): `"mask"` or `"deviation"`, see above.

    Returns:
        `Tensor` of shape `(r,)`.
    """
    if form == "mask":
        return alpha @ masks
    return 1 + alpha @ (masks - 1)


def normalize(alpha: Tensor) -> Tensor:
    """`α / Σ_k α_k` along the last dimension, that of the experts. Raises `SVFError` where a sum is 0."""
    total = alpha.sum(-1, keepdim=True)
    if (total == 0).any():
        raise SVFError("weights that sum to 0 cannot be normalized: give at least one of them a value")
    return alpha / total


def check_form(form: str) -> None:
    """Raises `SVFError` for an unknown form."""
    if form not in FORMS:
        raise SVFError(f"form of the combination must be one of {', '.join(FORMS)}, not {form!r}")


def check_record(combination: Any) -> None:
    """Raises `SVFError` unless this is what an adapter's configuration says of the combination that it was made by."""
    known: Mapping[str, Any] = combination if isinstance(combination, Mapping) else {}
    experts, rows = known.get("experts"), known.get("alpha")
    if (
        not (isinstance(experts, list) and experts and all(isinstance(name, str) for name in experts))
        or not (isinstance(rows, list) and rows and all(isinstance(row, list) for row in rows))
        or not all(len(row) == len(experts) for row in rows)
        or not all(isinstance(weight, int | float) and math.isfinite(weight) for row in rows for weight in row)
        or known.get("scope", "global") not in SCOPES
        or known.get("form", "mask") not in FORMS
    ):
        raise SVFError("combination must have names of experts, alpha as rows with a number for each, scope and form")


def assign_groups(names: Sequence[str], scope: str) -> list[int]:
    """
    Which row of the weights each of the adapted matrices uses, by their module paths: scope `"global"` has one row for
    all, `"layer"` one a layer (the first number in a path), `"matrix"` one a matrix.

    Raises:
        SVFError: an unknown scope, or a matrix outside of the layers where there is to be one row a layer.
    """
    if scope not in SCOPES:
        raise SVFError(f"scope of the weights must be one of {', '.join(SCOPES)}, not {scope!r}")
    if scope == "global":
        return [0] * len(names)
    if scope == "matrix":
        return list(range(len(names)))
    layers = []
    for name in names:
        number = re.search(r"\.(\d+)\.", f".{name}.")
        if number is None:
            raise SVFError(
                f"{name} is not in a numbered layer, so scope layer is not possible: use scope global or matrix"
            )
        layers.append(int(number[1]))
    rows = {layer: row for row, layer in enumerate(sorted(set(layers)))}
    return [rows[layer] for layer in layers]


def check_weights(
    weights: "Sequence[float] | Sequence[Sequence[float]] | Tensor", experts: int, groups: int, normalized: bool
) -> Tensor:
    """
    The weights as a table (groups, K), fp32: one row for each of the `groups` that the scope asks for.

    Args:
        weights: (K,) or (groups, K): one weight an expert, for all groups alike or for each.
        experts: `K`.
        normalized: whether each row has to sum to 1.

    Raises:
        SVFError: another number of weights, one that is not finite, or a row that does not sum to 1 and has to.
    """
    try:
        table = torch.as_tensor(weights, dtype=torch.float32).detach().cpu()
    except (TypeError, ValueError) as error:
        raise SVFError(f"weights must be numbers, one an expert: {one_line(error)}") from error
    if table.ndim == 1:
        if len(table) != experts:
            raise SVFError(f"{len(table)} weights for {experts} experts: give one weight an expert")
        table = table.expand(groups, experts).clone()
    if table.shape != (groups, experts):
        raise SVFError(
            f"weights of shape {tuple(table.shape)}: this scope needs ({groups}, {experts}), a row a group and a "
            "weight an expert"
        )
    if not torch.isfinite(table).all():
        raise SVFError("a weight is not a finite number")
    sums = table.sum(1)
    if normalized and (sums - 1).abs().max() > _TOLERANCE:
        worst = sums[(sums - 1).abs().argmax()].item()
        raise SVFError(
            f"normalized weights must sum to 1, these sum to {worst:g}: change them, or leave out normalized"
        )
    return table


def combine_matrices(
    masks: Mapping[str, Tensor],
    weights: "Sequence[float] | Sequence[Sequence[float]] | Tensor",
    scope: str = "global",
    form: str = "mask",
    normalized: bool = False,
) -> dict[str, Tensor]:
    """[`combine`] for each of `masks` (K, r), by the module path of its matrix and in the order of the model. Raises
    `SVFError` as [`assign_groups`] and [`check_weights`] do."""
    rows = assign_groups(list(masks), scope)
    experts = len(next(iter(masks.values())))
    table = check_weights(weights, experts, max(rows) + 1, normalized)
    return {
        path: combine(of_experts, table[row].to(of_experts), form)
        for row, (path, of_experts) in zip(rows, masks.items(), strict=True)
    }


def even_weights(experts: int, groups: int) -> Tensor:
    """The plain mean of the experts, `1/K` each, in either form: shape `(groups, K)`."""
    return torch.full((groups, experts), 1 / experts)
