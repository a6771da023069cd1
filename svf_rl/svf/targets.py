"""Which linear layers of a model are adapted: presets, their regular expressions, and the layers found.

A target is a regular expression that must match a module's whole path (`re.fullmatch`), so that GPT-2's `mlp.c_proj`
is one and its `attn.c_proj` is not. The same string serves as PEFT's `target_modules`.
"""

import difflib
import re
from collections.abc import Iterable

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from svf_rl.errors import SVFError

_MLP = (
    r"(?:.*\.)?mlp\.(?:gate_proj|up_proj|down_proj"  # Llama, Mistral, Qwen2, Qwen3, Gemma
    r"|c_fc|c_proj"  # GPT-2
    r"|fc1|fc2|gate_up_proj"  # Phi, Phi-3
    r"|dense_h_to_4h|dense_4h_to_h)"  # GPT-NeoX, Falcon
)
# Queries and values, as in the paper's ablation; a fused projection takes them along with the keys.
_ATTENTION = (
    r"(?:.*\.)?(?:self_attn|attn|attention|self_attention)\.(?:q_proj|v_proj"  # Llama and its relatives
    r"|c_attn"  # GPT-2
    r"|qkv_proj|query_key_value)"  # Phi-3; GPT-NeoX, Falcon
)
TARGETS = {"mlp": _MLP, "attention": _ATTENTION, "mlp+attention": f"{_MLP}|{_ATTENTION}"}


def target_regex(targets: str | Iterable[str] | None, key: str = "targets") -> str:
    """`targets` as one expression: a string is a preset's name or the user's own expression, a list contains endings of
    module paths, as in PEFT. Raises `SVFError`, which names the setting `key`, for one that is not valid."""
    if not isinstance(targets, str):
        return rf"(?:.*\.)?(?:{'|'.join(map(re.escape, sorted(targets or ())))})"
    regex = TARGETS.get(targets, targets)
    try:
        re.compile(regex)
    except (re.error, OverflowError, RecursionError) as error:
        raise SVFError(
            f"{key} {targets!r} is neither a preset ({', '.join(TARGETS)}) nor a valid regular expression: {error}"
        ) from error
    return regex


def find_targets(model: nn.Module, targets: str) -> dict[str, nn.Module]:
    """Linear layers (`nn.Linear`, transformers' `Conv1D`) whose path the targets match, in the model's order.

    Other matches (containers, norms, embeddings) are ignored. Raises `SVFError` where nothing linear matches, the
    output layer does, or the matched MLPs are fused experts."""
    regex = target_regex(targets)
    pattern = re.compile(regex)
    matches = {name: module for name, module in model.named_modules() if name and pattern.fullmatch(name)}
    _refuse_experts(model, pattern, wants_mlp=regex in (TARGETS["mlp"], TARGETS["mlp+attention"]))

    found = {name: module for name, module in matches.items() if is_linear(module)}
    if not found:
        raise SVFError(_nothing_found(model, targets, list(matches)))
    for name, module in found.items():
        if is_output_layer(model, name, module):
            raise SVFError(
                f"targets {targets!r} match the output layer {name}, which SVF does not adapt; "
                r"narrow the expression, for example to '.*\.layers\..*'"
            )
    return found


def logical_weight(module: nn.Module) -> Tensor:
    """The weight as (out, in): a view. `Conv1D` stores (in, out)."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.T if isinstance(module, Conv1D) else weight


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def is_output_layer(model: nn.Module, name: str, module: nn.Module) -> bool:
    """Whether it is the language-model head, under any name, or a layer that shares the input embedding's weight."""
    if name.rpartition(".")[2] == "lm_head":
        return True
    for getter in ("get_output_embeddings", "get_input_embeddings"):
        embeddings = getattr(model, getter)() if hasattr(model, getter) else None
        if embeddings is not None and (module is embeddings or module.weight is getattr(embeddings, "weight", None)):
            return True
    return False


def _refuse_experts(model: nn.Module, pattern: re.Pattern[str], wants_mlp: bool) -> None:
    """Mixture-of-experts layers hold all experts of a layer in 3-D parameters (experts, out, in) of one module."""
    for name, module in model.named_modules():
        fused = name.rpartition(".")[2] == "experts" and any(p.dim() == 3 for p in module.parameters(recurse=False))
        if fused and (wants_mlp or pattern.fullmatch(name)):
            raise SVFError(
                f"{name} is a fused mixture-of-experts layer, which SVF does not support: use targets attention"
            )


def _nothing_found(model: nn.Module, targets: str, others: list[str]) -> str:
    if others:
        only = ", ".join(others[:3])
        return f"targets {targets!r} match no linear layer, only {only}; match nn.Linear or Conv1D layers"
    # Layers repeat: compare with the first of each kind, the path without its numbers.
    kinds: dict[str, str] = {}
    for name, module in model.named_modules():
        if is_linear(module):
            kinds.setdefault(re.sub(r"\.\d+(?=\.)", "", name), name)
    wanted = re.sub(r"[^\w.]|\\.", "", targets.replace(r"\.", "."))
    near = difflib.get_close_matches(wanted, kinds, n=3, cutoff=0) or list(kinds)[:3]
    names = ", ".join(kinds[kind] for kind in near) or "none"
    return f"targets {targets!r} match no module path of this model; the nearest linear layers are: {names}"
