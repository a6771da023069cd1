"""One generator for the base model and all adapters."""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from svf_rl.errors import SVFError
from svf_rl.evaluation.adapters import Adapter
from svf_rl.evaluation.arguments import EvaluationArguments
from svf_rl.generation import Completion, CompletionGenerator, Sampling
from svf_rl.generation.weights import adapted_weights
from svf_rl.models.arguments import ModelArguments
from svf_rl.models.kinds import load_saved
from svf_rl.models.loading import load_base


def load_config(arguments: EvaluationArguments) -> PretrainedConfig:
    """The configuration of the base model. Raises `SVFError` where there is no model."""
    location = ModelArguments(arguments.model).location
    try:
        return AutoConfig.from_pretrained(location, trust_remote_code=arguments.trust_remote_code)
    except (OSError, ValueError) as error:
        raise SVFError(f"no model in {location}: {' '.join(str(error).split())[:200]}") from error


def base_model(arguments: EvaluationArguments, config: PretrainedConfig) -> ModelArguments:
    """The base model with the type of its weights. Without CUDA, `auto` takes float32 for half precision, which it
    holds to the bit."""
    dtype: Any = arguments.dtype
    if dtype == "auto":
        stored = config.get_text_config().dtype or config.dtype or torch.float32
        name = str(stored).removeprefix("torch.")
        half = name in ("bfloat16", "float16") and not torch.cuda.is_available()
        dtype = "float32" if half else name
    return ModelArguments(arguments.model, dtype=dtype, trust_remote_code=arguments.trust_remote_code)


def positions(config: PretrainedConfig) -> int | None:
    """How many tokens a prompt and its completion may take together; `None` where the model does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


class Engine:
    """
    Generates with the base model or with one of the adapters, whichever `use` named last.

    Every adapter that is going to be used is put onto the model once at the start, so that one of another model is
    refused before hours of generation and not after.

    Args:
        arguments ([`EvaluationArguments`]): which backend, and its options.
        model ([`ModelArguments`]): the base model, its type resolved.
        adapters (`Sequence[Adapter]`): those that `use` will name.
        tokenizer (`PreTrainedTokenizerBase`): for stop strings and padding.
        max_length (`int`): the longest prompt and its completion, in tokens.

    Raises:
        SVFError: the model cannot be loaded, an adapter does not fit it, or vLLM cannot start.
    """

    def __init__(
        self,
        arguments: EvaluationArguments,
        model: ModelArguments,
        adapters: Sequence[Adapter],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ):
        self._model_arguments = model
        # vLLM has the GPU to itself: adapters are merged on the CPU, a matrix at a time
        own_gpu = arguments.backend == "transformers" and torch.cuda.is_available()
        self._device = "cuda" if own_gpu else "cpu"
        self._model: PreTrainedModel | PeftModel | None = None
        self._holds: Adapter | None = None  # what is on `_model`
        self._used: Adapter | None = None
        for adapter in adapters:
            loaded = self._load(adapter)
            if arguments.backend == "vllm":
                next(adapted_weights(loaded))  # refuses what cannot be brought to the engine
        self.generator: CompletionGenerator
        if arguments.backend == "vllm":
            self.generator = start_vllm(
                model,
                max_length,
                seed=arguments.seed,
                enforce_eager=arguments.enforce_eager,
                gpu_memory_utilization=arguments.gpu_memory_utilization,
            )
        else:
            assert arguments.batch_size is not None
            self.generator = transformers_generator(self._load(None), tokenizer, arguments.batch_size)

    def use(self, adapter: Adapter | None) -> None:
        """Generate with `adapter` from now on, or with the base model (`None`)."""
        if adapter is not self._used:
            # everything: the adapter before may have changed weights that this one leaves alone
            self.generator.sync(self._load(adapter), everything=True)
            self._used = adapter

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """One completion a prompt, in order."""
        return self.generator.generate(prompts, sampling, seeds)

    def _load(self, adapter: Adapter | None) -> PreTrainedModel | PeftModel:
        """The base model with `adapter` on it, read anew: taking an adapter off does not undo all that PEFT may do."""
        if self._model is not None and adapter is self._holds:
            return self._model
        self._model = None
        base = load_base(self._model_arguments).eval()
        if adapter is not None:
            base = load_saved(base, self._model_arguments, adapter.folder).eval()
        self._model, self._holds = base.to(self._device), adapter
        return self._model


def start_vllm(
    model: ModelArguments, max_length: int, *, seed: int, enforce_eager: bool, gpu_memory_utilization: float
) -> CompletionGenerator:
    """An engine with the base model. Raises `SVFError` where vLLM is missing or does not start."""
    try:
        from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator

        return ColocatedVLLMGenerator(
            model.location,
            dtype=getattr(torch, model.dtype),
            seed=seed,
            device="cuda" if torch.cuda.is_available() else "cpu",
            max_model_len=max_length,
            gpu_memory_utilization=gpu_memory_utilization,
            enforce_eager=enforce_eager,
            trust_remote_code=model.trust_remote_code,
        )
    except ImportError as error:
        raise SVFError(
            f"vLLM is not installed ({error}): pip install 'svf-rl[cpu]' or 'svf-rl[cuda]', or give "
            "--backend transformers"
        ) from error
    except SVFError:
        raise
    # what vLLM raises for a model that it does not know, or for which the memory is too small
    except (ValueError, RuntimeError, OSError) as error:
        detail = " ".join(str(error).split())[:300]
        raise SVFError(
            f"vLLM does not start with {model.location}: {detail}; --backend transformers is another way"
        ) from error


def transformers_generator(
    base: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> CompletionGenerator:
    """Generation by the model itself."""
    from svf_rl.generation.transformers_generator import TransformersGenerator

    ends = base.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    eos = list(ends) if isinstance(ends, list | tuple) else [ends]
    pad = eos[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return TransformersGenerator(base, eos_token_ids=eos, pad_token_id=pad, batch_size=batch_size, tokenizer=tokenizer)
