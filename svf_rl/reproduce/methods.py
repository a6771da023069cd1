"""What the methods of a comparison are called: in the names of files, and in tables and pictures."""

import re
from collections.abc import Collection

from svf_rl.evaluation.adapters import BASE

SVF, LORA = "svf", "lora"
MEAN, PROMPT, DISPATCH, ORACLE = "mean", "prompt", "dispatch", "oracle"
RESERVED = (BASE, SVF, LORA, MEAN, PROMPT, DISPATCH, ORACLE)

_FEW_SHOT = "few-shot-"
_NAMES = {
    BASE: "base model", SVF: "SVF", LORA: "LoRA", MEAN: "plain mean of the experts", PROMPT: "dispatch by a prompt",
    DISPATCH: "dispatch expert", ORACLE: "each item's own expert (oracle)",
}  # fmt: skip


def few_shot_label(shots: int) -> str:
    """Few-shot adaptation from so many labelled prompts."""
    return f"{_FEW_SHOT}{shots}"


def is_few_shot(method: str) -> bool:
    return method.startswith(_FEW_SHOT)


def method_name(method: str, experts: Collection[str] = ()) -> str:
    """As readers know it."""
    if method in experts:
        return f"expert {method}"
    if is_few_shot(method):
        return f"few-shot, {method.removeprefix(_FEW_SHOT)} prompts"
    return _NAMES.get(method, method)


def slug(name: str) -> str:
    """The name as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", name).strip("-")
