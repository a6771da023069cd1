"""The tokenizer of a model as GGUF holds it."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from svf_rl.errors import SVFError
from svf_rl.models.gguf.splits import split_name
from svf_rl.models.gguf.tokenizer import CONTROL, OF_THE_USER
from svf_rl.storage.json_files import read_json

_NORMAL, _UNUSED = 1, 5


def add_vocabulary(writer: Any, folder: Path, size: int) -> None:
    """
    Add the tokens, their merges, the special ones and the chat template.

    Args:
        writer (`gguf.GGUFWriter`): Of the file.
        folder (`Path`): With `tokenizer.json`.
        size (`int`): Rows of the model's embedding; tokens that no text becomes fill it up.

    Raises:
        SVFError: a tokenizer of another kind than byte-level BPE, or one that splits texts in a way without a name.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    described = read_json(folder / "tokenizer.json", "write the model with a fast tokenizer", {"model": dict})
    model = described["model"]
    if model.get("type") != "BPE" or (described.get("decoder") or {}).get("type") != "ByteLevel":
        raise SVFError(
            "only byte-level BPE tokenizers are written as GGUF here: write the model with --format safetensors, and "
            "convert that with llama.cpp's convert_hf_to_gguf.py"
        )
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [_UNUSED] * size
    for token, i in model["vocab"].items():
        tokens[i], types[i] = token, _NORMAL
    for i, added in tokenizer.added_tokens_decoder.items():
        if i < size:
            tokens[i], types[i] = added.content, CONTROL if added.special else OF_THE_USER
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split_name(described))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_add_space_prefix(False)
    for name, add in {
        "bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id, "pad": writer.add_pad_token_id,
        "unk": writer.add_unk_token_id,
    }.items():  # fmt: skip
        token = getattr(tokenizer, f"{name}_token_id")
        if token is not None:
            add(token)
    for end in end_tokens(tokenizer, folder):
        if end != tokenizer.eos_token_id:  # where the turn of a chat ends with another token than a text
            writer.add_eot_token_id(end)
            break
    plain = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(bool(plain) and plain[0] == tokenizer.bos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def end_tokens(tokenizer: PreTrainedTokenizerBase, folder: Path) -> list[int]:
    """Those that end a completion, by the tokenizer and the generation configuration."""
    found = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if (folder / "generation_config.json").is_file():
        more = GenerationConfig.from_pretrained(folder).eos_token_id
        found += [more] if isinstance(more, int) else more or []
    return list(dict.fromkeys(found))
