"""How a byte-level BPE tokenizer splits a text before its merges: GGUF's name of it, and the split itself.

The names are llama.cpp's (`tokenizer.ggml.pre`), which knows many more. With another split the same text becomes other
tokens, so that one without a name here is refused.
"""

from typing import Any

from tokenizers import Regex, pre_tokenizers

from svf_rl.errors import SVFError

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REGEXES = {"llama-bpe": rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}", "qwen2": rf"{_WORDS}|\p{{N}}|{_REST}"}

IGNORING_MERGES = ("llama-bpe",)
"""Splits with which llama.cpp takes a word of the vocabulary whole, whether merges lead to it or not, and begins a text
with the beginning-of-sequence token unless the file says otherwise."""


def find_split(name: str) -> pre_tokenizers.PreTokenizer:
    """The split that GGUF calls `name`. Raises `SVFError` for one that is not known here."""
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name == "gpt-2":
        return plain
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    if name in _REGEXES:
        split = pre_tokenizers.Split(Regex(_REGEXES[name]), behavior="isolated", invert=False)
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    raise SVFError(
        f"its tokenizer splits texts in the way {name!r}, which is not known here: use the model's own files "
        "(safetensors) in place of the GGUF file"
    )


def split_name(tokenizer: dict[str, Any]) -> str:
    """What GGUF calls the split of a `tokenizer.json`. Raises `SVFError` for one that is not known here, and for texts
    that are changed before they are split."""
    own, normalizer = tokenizer.get("pre_tokenizer") or {}, tokenizer.get("normalizer")
    parts = own.get("pretokenizers", [own])
    kinds = [part.get("type") for part in parts]
    if normalizer is not None and normalizer.get("type") != "NFC":  # which llama.cpp leaves to whoever writes the text
        kinds = []
    if kinds[-1:] == ["ByteLevel"] and not parts[-1].get("add_prefix_space"):
        by_itself = parts[-1].get("use_regex", True)
        if kinds == ["ByteLevel"] and by_itself:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits") and by_itself:
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not by_itself:
            pattern = parts[0].get("pattern", {}).get("Regex")
            whole = bool((tokenizer.get("model") or {}).get("ignore_merges"))
            for name, known in _REGEXES.items():
                if pattern == known and whole == (name in IGNORING_MERGES):
                    return name
    raise SVFError(
        "the way in which this tokenizer splits a text has no name in GGUF that is known here: write the model with "
        "--format safetensors, and convert that with llama.cpp's convert_hf_to_gguf.py"
    )
