"""What the methods of a comparison are called: in the names of files, and in tables and pictures."""

import os
import re
from collections.abc import Collection

from svf_rl.errors import SVFError
from svf_rl.evaluation.adapters import BASE
from svf_rl.settings.yaml_values import shown

SVF, LORA = "svf", "lora"
MEAN, PROMPT, DISPATCH, ORACLE = "mean", "prompt", "dispatch", "oracle"
RESERVED = (BASE, SVF, LORA, MEAN, PROMPT, DISPATCH, ORACLE)

_LONGEST = 100  # bytes of a part of a file's name
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
    """The name as part of a file's name: letters of any script. Raises `SVFError` for a name that gives none."""
    plain = re.sub(r"[^\w.+-]+", "-", name).strip("-")
    if plain in ("", ".", "..") or len(os.fsencode(plain)) > _LONGEST:
        raise SVFError(f"{shown(name)} gives no file a name: use letters or digits, and at most {_LONGEST} bytes")
    return plain
