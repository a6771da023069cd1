"""A plain model in a folder as one GGUF file, which llama.cpp and what stands on it (Ollama, LM Studio) read."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoConfig, PretrainedConfig

from svf_rl.errors import SVFError
from svf_rl.export.gguf.vocabulary import add_vocabulary
from svf_rl.models.gguf import require_gguf
from svf_rl.models.gguf.rope import TENSOR, frequency_factors
from svf_rl.svf.stored_weights import StoredWeights

# GGUF's name of the architecture, and whether it rotates neighbouring pairs of a head: transformers rotates the halves,
# so that the rows of q and k are in another order there.
_ARCHITECTURES = {
    "llama": ("llama", True),
    "mistral": ("llama", True),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
}


def check_writable_as_gguf(config: PretrainedConfig) -> None:
    """Raises `SVFError` where no GGUF can be written of such a model, or the package for it is missing."""
    require_gguf()
    if config.model_type not in _ARCHITECTURES:
        raise SVFError(
            f"a {config.model_type} model cannot be written as GGUF here, only {', '.join(_ARCHITECTURES)}: write it "
            "with --format safetensors, and convert that with llama.cpp's convert_hf_to_gguf.py"
        )
    scaling = getattr(config, "rope_parameters", None) or {}
    if scaling.get("rope_type", "default") not in ("default", "llama3"):
        raise SVFError(
            f"positions of type {scaling['rope_type']} cannot be written as GGUF here: write the model with --format "
            "safetensors, and convert that with llama.cpp's convert_hf_to_gguf.py"
        )


def write_gguf(folder: Path, path: Path, stored_as: str) -> None:
    """
    Write the model in `folder` (a configuration, safetensors and a tokenizer) to `path`, a tensor at a time.

    Args:
        folder (`Path`): As [`svf_rl.experts.merged.merge`] writes it.
        path (`Path`): The file.
        stored_as (`str`): One of `svf_rl.export.gguf.TYPES`.

    Raises:
        SVFError: an architecture, or a tokenizer, that cannot be written.
    """
    import gguf

    config = AutoConfig.from_pretrained(folder)
    check_writable_as_gguf(config)
    architecture, _ = _ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, architecture)
    _add_shape(writer, config)
    writer.add_file_type(gguf.LlamaFileType[f"{'ALL' if stored_as == 'f32' else 'MOSTLY'}_{stored_as.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_vocabulary(writer, folder, config.vocab_size)
    stored = StoredWeights(str(folder), folder)
    names = _names(config, stored.names)
    kinds = {}
    for ours, theirs in names.items():
        shape = tuple(stored.read(ours).shape)
        kinds[ours] = kind = stored_type(shape, stored_as)
        size = math.prod(gguf.quant_shape_to_byte_shape(shape, kind))
        writer.add_tensor_info(theirs, shape, np.dtype(np.float32), size, kind)
    factors = frequency_factors(config)
    if factors is not None:
        writer.add_tensor_info(TENSOR, factors.shape, factors.dtype, factors.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for ours in tqdm(names, unit="tensor", desc=path.name, leave=False):
        writer.write_tensor_data(gguf.quants.quantize(as_gguf(ours, stored.read(ours), config), kinds[ours]))
    if factors is not None:
        writer.write_tensor_data(factors)
    writer.close()


def stored_matrices(
    path: Path, config: PretrainedConfig, matrices: Iterator[tuple[str, Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Of `(name, W, W')` each: `(W, W', Q(W), Q(W'))`, of which the last is what the written file holds, in its order
    of rows."""
    import gguf

    there = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, weight, tuned in matrices:
        tensor = there[_names(config, [name])[name]]
        before, after = as_gguf(name, weight, config), as_gguf(name, tuned, config)
        rounded = gguf.quants.dequantize(gguf.quants.quantize(before, tensor.tensor_type), tensor.tensor_type)
        stored = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(after.shape)
        yield tuple(torch.from_numpy(np.array(each)) for each in (before, after, rounded, stored))


def as_gguf(name: str, weight: Tensor, config: PretrainedConfig) -> np.ndarray:
    """The parameter `name` of transformers' model in fp32, its rows in GGUF's order."""
    values = weight.float().contiguous().numpy()
    _, pairs = _ARCHITECTURES[config.model_type]
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if not pairs or heads is None:
        return values
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def stored_type(shape: tuple[int, ...], stored_as: str) -> Any:
    """gguf's type of a tensor of this shape: blocks of 32 do not go into each."""
    import gguf

    kind = gguf.GGMLQuantizationType[stored_as.upper() if len(shape) > 1 else "F32"]
    if kind.name == "Q8_0" and shape[-1] % 32:
        return gguf.GGMLQuantizationType.F16
    return kind


def _add_shape(writer: Any, config: PretrainedConfig) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # llama.cpp reads all that is in the context, so that it is not to be longer than what the model would
    writer.add_context_length(min(config.max_position_embeddings, getattr(config, "sliding_window", None) or math.inf))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _names(config: PretrainedConfig, stored: list[str]) -> dict[str, str]:
    """GGUF's name of each tensor in the files. Raises `SVFError` for one that it has no place for."""
    import gguf

    architecture, _ = _ARCHITECTURES[config.model_type]
    (number,) = (key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    known = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    names = {}
    for name in stored:
        theirs = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise SVFError(f"GGUF has no place for {name} in a {config.model_type} model")
        names[name] = theirs
    return names
