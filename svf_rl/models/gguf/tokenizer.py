"""The tokenizer of a GGUF file, from what the file says of it.

transformers reads one too, but takes the end of SmolLM2's file for its beginning and the other way round, forgets the
token that pads, and splits texts as GPT-2 does whatever the file says.
"""

from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from svf_rl.errors import SVFError, one_line
from svf_rl.models.gguf.splits import IGNORING_MERGES, find_split

CONTROL, OF_THE_USER = 3, 4
"""GGUF's types of tokens that stand for no text, and of those that are found in a text before it is split."""

_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def read_tokenizer(path: Path, metadata: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer of the file `path`, of which `metadata` is read. Raises `SVFError` for a kind that is not known
    here, and for a chat whose turns end with a token that does not end a completion."""
    kind = metadata.get("tokenizer.ggml.model")
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    ids = {ours: metadata.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in _ROLES.items()}
    named = {f"{role}_token": tokens[i] for role, i in ids.items() if i is not None and i < len(tokens)}
    if "eos_token" not in named:
        raise SVFError("it names no end-of-sequence token (tokenizer.ggml.eos_token_id), or no completion would end")
    template = metadata.get("tokenizer.chat_template")
    length = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    known = {"padding_side": "left", "model_max_length": length, **named}
    if kind == "gpt2":
        read: PreTrainedTokenizerBase = PreTrainedTokenizerFast(tokenizer_object=_byte_level(metadata), **known)
    elif kind == "llama":
        read = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, **known)
    else:
        raise SVFError(f"its tokenizer is of the kind {kind!r}, which is not known here: use the model's own files")
    if read.pad_token_id is None:
        read.pad_token = read.eos_token
    if template:
        read.chat_template = template
        _check_end_of_turn(read, metadata)
    return read


def _byte_level(metadata: dict[str, Any]) -> Tokenizer:
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    split = metadata.get("tokenizer.ggml.pre", "gpt-2")
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocabulary, merges, ignore_merges=split in IGNORING_MERGES))
    tokenizer.pre_tokenizer = find_split(split)
    if split == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    for special, kind in ((True, CONTROL), (False, OF_THE_USER)):
        added = [token for token, one in zip(tokens, types, strict=True) if one == kind]
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=special) for token in added])
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    if metadata.get("tokenizer.ggml.add_bos_token", split in IGNORING_MERGES) and bos is not None:
        start = tokens[bos]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", pair=f"{start} $A {start} $B", special_tokens=[(start, bos)]
        )
    return tokenizer


def _check_end_of_turn(tokenizer: PreTrainedTokenizerBase, metadata: dict[str, Any]) -> None:
    """With a chat template the token that ends an assistant's turn is the end of a completion."""
    said = "the answer"
    turns = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": said}]
    try:
        rendered = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except TemplateError as error:
        raise SVFError(f"its chat template cannot be used ({one_line(error)}): use the model's own files") from error
    after = tokenizer(rendered.rpartition(said)[2], add_special_tokens=False)["input_ids"]
    control = {i for i, kind in enumerate(metadata["tokenizer.ggml.token_type"]) if kind == CONTROL}
    end = next((i for i in after if i in control), None)
    if end is None or end == tokenizer.eos_token_id:
        return
    others = {metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eot", "eom")}
    if end not in others:
        raise SVFError(
            f"it says that {tokenizer.eos_token!r} ends a completion, and its chat template ends the assistant's turn "
            f"with {tokenizer.convert_ids_to_tokens(end)!r}: set tokenizer.ggml.eos_token_id to {end} in the file "
            "(gguf-set-metadata, of the package gguf)"
        )
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
