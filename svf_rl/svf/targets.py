"""Which linear layers of a model are adapted: presets, their regular expressions, and the layers found.

A target is a regular expression that must match a module's whole path (`re.fullmatch`), so that GPT-2's `mlp.c_proj`
is one and its `attn.c_proj` is not. The same string serves as PEFT's `target_modules`.
"""

import difflib
import inspect
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers.pytorch_utils import Conv1D

from svf_rl.errors import SVFError
from svf_rl.svf.sharding import is_dtensor, is_sharded

# What a language model reads pictures and sound with is not adapted.
_TEXT = r"(?!(?:.*\.)?(?:vision|visual|audio|image|speech)\w*\.)(?:.*\.)?"
# Feed-forward blocks and their layers, but not what chooses experts. The blocks have these names in transformers, or
# none (in OPT, BART and BERT with their descendants): there the layers belong to the numbered layer itself.
_MLP = (
    _TEXT + r"(?:(?:(?:shared_)?mlp|mlp_block|ffn|ff|ffns\.\d+|feed_forward|feedforward|DenseReluDense)"
    r"\.(?:\w+_proj|proj_\w+|c_fc|fc\d|fc_in|fc_out|dense\w*|\w+_dense|w\d|w[io](?:_\d)?|W[io]|lin\d|linear_\d"
    r"|layer_\d|\w+_linear|intermediate|output|key|value|receptance)"
    r"|\d+\.(?:fc1|fc2|ffn|ffn_output|(?:intermediate|output)\.dense)"
    r"|mixer\.(?:up_proj|down_proj))"  # Nemotron-H
)
_ATTENTION = (
    _TEXT + r"(?:\w*(?:(?<!linear_)attn|[Aa]ttention|attentions\.\d+)(?:\.self)?|mixer|temporal_block)"
    r"\.(?:q_proj|v_proj|query|value|query_proj|value_proj|q_lin|v_lin|q|v"
    r"|c_attn|Wqkv|qkv_proj|query_key_value"
    r"|q_b_proj|kv_b_proj)"  # DeepSeek's latent attention
)
TARGETS = {"mlp": _MLP, "attention": _ATTENTION, "mlp+attention": f"{_MLP}|{_ATTENTION}"}

# What the presets were when some saved adapters were trained.
_OLD_MLP = r"(?:.*\.)?mlp\.(?:gate_proj|up_proj|down_proj|c_fc|c_proj|fc1|fc2|gate_up_proj|dense_h_to_4h|dense_4h_to_h)"
_OLD_ATTENTION = (
    r"(?:.*\.)?(?:self_attn|attn|attention|self_attention)\."
    r"(?:q_proj|v_proj|c_attn|qkv_proj|query_key_value)"
)
PRESETS = {regex: name for name, regex in TARGETS.items()} | {
    _OLD_MLP: "mlp",
    _OLD_ATTENTION: "attention",
    f"{_OLD_MLP}|{_OLD_ATTENTION}": "mlp+attention",
}
"""The name of each preset, by its expression, present or former."""


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
            f"{key} {targets!r:.300} is neither a preset ({', '.join(TARGETS)}) nor a valid regular expression: {error}"
        ) from error
    return regex


def regex_of(config: Any) -> str:
    """One expression for what a PEFT configuration targets and does not exclude. Raises as [`target_regex`]."""
    targets, excluded = target_regex(config.target_modules), config.exclude_modules
    return rf"(?!(?:{target_regex(excluded)})\Z)(?:{targets})" if excluded else targets


def find_targets(model: nn.Module, targets: str, listed: bool = False) -> dict[str, nn.Module]:
    """Linear layers (`nn.Linear`, transformers' `Conv1D`) whose path the targets match, in the model's order; `listed`
    as in [`check_target`].

    Raises `SVFError` where nothing linear matches, the matched MLPs are fused experts, or [`check_target`] does."""
    regex = target_regex(targets)
    pattern = re.compile(regex)
    matches = {name: module for name, module in model.named_modules() if name and pattern.fullmatch(name)}
    _refuse_experts(model, pattern, wants_mlp=PRESETS.get(regex) in ("mlp", "mlp+attention"))
    if not any(is_linear(module) for module in matches.values()):
        raise SVFError(_nothing_found(model, targets, list(matches)))
    # the linear ones first, since the output layer is the more frequent mistake
    for name in sorted(matches, key=lambda name: not is_linear(matches[name])):
        check_target(model, name, matches[name], listed)
    return {name: module for name, module in matches.items() if is_linear(module)}


def check_target(model: nn.Module, name: str, module: nn.Module, listed: bool = False) -> bool:
    """
    Whether the matched `module` of that path is adapted. Expressions also match containers, activations and norms,
    which are passed over; those that stand in a list of names (`listed`) are meant.

    Raises:
        SVFError: it is meant, or has a matrix, and cannot be adapted: an embedding, a convolution, a quantised layer,
            the output layer, or one whose weight another module reads without calling it.
    """
    if not is_linear(module):
        own = list(module.parameters(recurse=False))
        if not list(module.children()):
            own += module.buffers(recurse=False)  # most quantised layers hold their weight so
        if listed or any(tensor.dim() >= 2 for tensor in own):
            raise SVFError(
                f"the targets match {name}, a {type(module).__name__}, which SVF cannot adapt: it adapts nn.Linear and "
                "Conv1D of transformers with weights that are not quantised; narrow target_modules, or name it in "
                "exclude_modules"
            )
        return False
    kind = quantization_of(module)
    if kind and not isinstance(module, nn.Linear):
        raise SVFError(f"{name} is a quantized Conv1D ({kind}), which SVF cannot adapt: load the model unquantised")
    own_forward = type(module).forward not in (nn.Linear.forward, Conv1D.forward)
    # a quantised kernel is compared with its weight; transformers' FalconLinear is a plain one
    if own_forward and not kind and not type(module).__module__.startswith("transformers.models."):
        raise SVFError(
            f"the targets match {name}, a {type(module).__name__}, which computes something else than its weight times "
            "the input (it is quantised, for example): SVF cannot adapt it; load the model unquantised, or name it in "
            "exclude_modules"
        )
    if is_output_layer(model, name, module):
        raise SVFError(
            f"the targets match the output layer {name}, which SVF does not adapt; "
            r"narrow the expression, for example to '.*\.layers\..*'"
        )
    parent, child = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
    if _reads_weight(parent.__class__, child):
        raise SVFError(
            f"the targets match {name}, whose weight {type(parent).__name__} reads without calling the layer, so that "
            "an adapter would have no effect: name it in exclude_modules"
        )
    return True


@cache
def _reads_weight(parent: Any, child: str) -> bool:
    """Whether the code of `parent` uses the weight of its layer `child` itself (`nn.MultiheadAttention`, the fused
    kernels of Mamba), beyond looking at its type or place, setting its start, and parts of it (a branch of BLOOM)."""
    try:
        code = inspect.getsource(parent)
    except (OSError, TypeError):  # not from a file
        return False
    used = rf"(?<!isinstance\()(?<!_\()\bself\.{re.escape(child)}\.weight\b(?!\.(?:dtype|device|shape)\b|\[)"
    return re.search(used, code) is not None


def quantization_of(module: nn.Module) -> str | None:
    """How the weight of a linear layer is quantised, in a word or two; `None` where it holds plain numbers."""
    weight: Any = module.weight
    if is_traceable_wrapper_subclass(weight) and not is_dtensor(weight):  # of torchao, quanto
        return type(weight).__name__
    if not weight.is_floating_point() or weight.dtype.itemsize == 1:  # fp8 has separate scales too
        return str(weight.dtype)
    if isinstance(module, nn.Linear) and not is_sharded(weight) and weight.shape[-1] != module.in_features:
        return f"packed into {weight.dtype}"
    return None


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


def fused_experts(model: nn.Module) -> list[str]:
    """Paths of the modules that hold all experts of a layer in 3-D parameters (experts, out, in)."""
    return [
        name
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == "experts" and any(p.dim() == 3 for p in module.parameters(recurse=False))
    ]


def _refuse_experts(model: nn.Module, pattern: re.Pattern[str], wants_mlp: bool) -> None:
    for name in fused_experts(model):
        if wants_mlp or pattern.fullmatch(name):
            raise SVFError(
                f"{name} is a fused mixture-of-experts layer, which SVF does not support: use targets attention"
            )


def _nothing_found(model: nn.Module, targets: str, others: list[str]) -> str:
    if others:
        only = ", ".join(others[:3])
        return f"targets {targets!r:.300} match no linear layer, only {only}; match nn.Linear or Conv1D layers"
    # Layers repeat: compare with the first of each kind, the path without its numbers.
    kinds: dict[str, str] = {}
    for name, module in model.named_modules():
        if is_linear(module):
            kinds.setdefault(re.sub(r"\.\d+(?=\.)", "", name), name)
    wanted = re.sub(r"[^\w.]|\\.", "", targets.replace(r"\.", "."))
    near = difflib.get_close_matches(wanted, kinds, n=3, cutoff=0) or list(kinds)[:3]
    names = ", ".join(kinds[kind] for kind in near) or "none"
    hint = "; several names are a list: [q_proj, v_proj]" if re.fullmatch(r"[\w.]+(\s*,\s*[\w.]+)+", targets) else ""
    hint = "; all of them are mlp+attention here" if targets == "all-linear" else hint
    return f"targets {targets!r:.300} match no module path of this model; the nearest linear layers are: {names}{hint}"
