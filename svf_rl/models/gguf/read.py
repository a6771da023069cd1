"""A GGUF file as a base model: converted once into a plain model's folder, which all that trains and serves reads."""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from svf_rl.errors import SVFError, one_line
from svf_rl.models.gguf import require_gguf
from svf_rl.models.gguf.rope import TENSOR, set_scaling
from svf_rl.models.gguf.tokenizer import read_tokenizer
from svf_rl.storage.disk_errors import disk_errors
from svf_rl.storage.folders import check_space, new_folder
from svf_rl.storage.locks import lock
from svf_rl.svf.cache import REMEDY, default_cache_dir


def converted_folder(path: Path) -> Path:
    """
    The folder with the model of a file, made when it is first asked for: dequantised, in half precision where the file
    holds that, or else in fp32.

    Raises:
        SVFError: no such file, one that is damaged, or of an architecture or tokenizer that cannot be read.
    """
    require_gguf()
    if not path.is_file():
        raise SVFError(f"there is no file {path}")
    status = path.resolve().stat()
    key = hashlib.sha256(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = default_cache_dir() / "gguf" / f"{path.stem}-{key}"
    if folder.is_dir():
        return folder
    with disk_errors(folder.parent, REMEDY):
        folder.parent.mkdir(parents=True, exist_ok=True)
    alone = lock(folder.with_name(f".{folder.name}.one"), path, seconds=None)  # of several processes one converts
    with disk_errors(folder.parent, REMEDY), alone:
        if not folder.is_dir():
            print(f"{path.name}: converting it, once, into {folder.parent}", file=sys.stderr, flush=True)
            _convert(path, folder)
    return folder


def _convert(path: Path, folder: Path) -> None:
    import gguf

    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise SVFError(f"{path} cannot be read as GGUF ({one_line(error)}): download it again") from error
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    dtype = _type_of({tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1})
    with new_folder(folder) as staging:
        check_space(folder, sum(int(tensor.n_elements) for tensor in reader.tensors) * dtype.itemsize)
        try:
            tokenizer = read_tokenizer(path, metadata)
            config = _complete(AutoConfig.from_pretrained(path.parent, gguf_file=path.name), metadata, reader.tensors)
            model = _as_plain(
                AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, config=config, dtype=dtype)
            )
            _check_all_read(model, {tensor.name for tensor in reader.tensors} - {TENSOR})
        except SVFError as error:
            raise SVFError(f"{path}: {error}") from error
        except (ValueError, OSError, KeyError, TypeError, NotImplementedError, RuntimeError) as error:
            raise SVFError(
                f"{path} cannot be read by transformers ({one_line(error)}): use the model's own files (safetensors)"
            ) from error
        _set_ends(model, tokenizer, metadata)
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)


def _complete(config: PretrainedConfig, metadata: dict[str, Any], tensors: Sequence[Any]) -> PretrainedConfig:
    """With what the file says and transformers does not read."""
    own = metadata.get("general.architecture")
    _check_positions(metadata, f"{own}.rope")
    head = metadata.get(f"{own}.attention.key_length")
    if head is not None and hasattr(config, "head_dim"):
        config.head_dim = int(head)
    if hasattr(config, "attention_bias"):
        config.attention_bias = any(tensor.name == "blk.0.attn_q.bias" for tensor in tensors)
    for tensor in tensors:
        if tensor.name == TENSOR:
            set_scaling(config, tensor.data)
    return config


def _check_positions(metadata: dict[str, Any], rope: str) -> None:
    """transformers says nothing of scaled positions, and scales none. Without a type they are scaled linearly."""
    kind = metadata.get(f"{rope}.scaling.type", "linear")
    factor = metadata.get(f"{rope}.scaling.factor") or metadata.get(f"{rope}.scale_linear") or 1
    if kind != "none" and factor != 1:
        raise SVFError(
            f"its positions are scaled ({kind}, by {factor:g}), which is not read: use the model's own files"
        )


def _check_all_read(model: PreTrainedModel, held: set[str]) -> None:
    """transformers says nothing of a tensor for which it has no place, or takes none of its values."""
    read = sum(1 for _ in model.named_parameters())
    if len(held) != read:
        kinds = sorted({name.split(".", 2)[-1] for name in held})
        raise SVFError(
            f"transformers takes {read} of its {len(held)} tensors ({', '.join(kinds)}): use the model's own files"
        )


def _as_plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same, which transformers no longer takes for quantised, and would not save."""
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def _type_of(stored: set[str]) -> torch.dtype:
    """The smallest that holds the matrices to the bit."""
    if stored <= {"BF16"}:
        return torch.bfloat16
    return torch.float16 if stored <= {"F16"} else torch.float32


def _set_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, metadata: dict[str, Any]) -> None:
    """What ends a completion: the tokenizer's end, and those that the file names beside it."""
    names = ("eos", "eot", "eom")
    named = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in names]
    ends = list(dict.fromkeys(int(end) for end in (tokenizer.eos_token_id, *named) if end is not None))
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(eos_token_id=ends, **ids)
    text = model.config.get_text_config()
    text.eos_token_id, text.bos_token_id, text.pad_token_id = tokenizer.eos_token_id, *ids.values()
