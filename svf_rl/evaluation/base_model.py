"""The base model of an evaluation: its type, its tokenizer, and what tells it from others."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from svf_rl.evaluation.arguments import EvaluationArguments
from svf_rl.generation.prompts import check_template_arguments
from svf_rl.models.arguments import ModelArguments
from svf_rl.models.loading import load_tokenizer
from svf_rl.storage.loading_errors import loading_error

# Where in each weights file a sample is taken: hashing all of 16 GB would take longer than many an evaluation.
_SAMPLES, _SAMPLE_BYTES = 64, 4096


@dataclass(frozen=True)
class BaseModel:
    """A base model that was found; its weights are not loaded. `arguments.dtype` is the type to load them in."""

    arguments: ModelArguments
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase

    @property
    def positions(self) -> int | None:
        """How many tokens a prompt and its completion may take together; `None` where the model does not say."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    @cached_property
    def fingerprint(self) -> str:
        return model_fingerprint(self.arguments.location, self.config)


def find_base_model(arguments: EvaluationArguments) -> BaseModel:
    """
    The base model that is asked for. Without CUDA, `dtype: auto` takes float32 for half precision, which it holds to
    the bit.

    Raises:
        SVFError: there is no model, or no tokenizer with it, or what is for its chat template is not.
    """
    check_template_arguments(arguments.chat_template_kwargs)
    location = ModelArguments(arguments.model).location
    try:
        config = AutoConfig.from_pretrained(location, trust_remote_code=arguments.trust_remote_code)
    except (OSError, ValueError) as error:
        raise loading_error("model", location, error) from error
    dtype: Any = arguments.dtype
    if dtype == "auto":
        dtype = str(config.get_text_config().dtype or config.dtype or torch.float32).removeprefix("torch.")
        if dtype in ("bfloat16", "float16") and not torch.cuda.is_available():
            dtype = "float32"
    model = ModelArguments(arguments.model, dtype=dtype, trust_remote_code=arguments.trust_remote_code)
    return BaseModel(model, config, load_tokenizer(model))


def model_fingerprint(location: str, config: PretrainedConfig) -> str:
    """A hash of a model: its commit on the Hub, or else its configuration, and of each weights file the size and some
    samples, which other weights would not share."""
    commit = getattr(config, "_commit_hash", None)
    if commit is not None:
        return commit
    digest = hashlib.sha256((Path(location) / "config.json").read_bytes())
    for file in sorted(path for pattern in ("*.safetensors", "*.bin") for path in Path(location).glob(pattern)):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            for i in range(_SAMPLES):
                stream.seek(size * i // _SAMPLES)
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]
