"""What generates for a pool: vLLM in this process, or transformers."""

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from svf_rl.errors import SVFError
from svf_rl.experts.arguments import EngineArguments
from svf_rl.generation import CompletionGenerator
from svf_rl.generation.vllm import CannotServeFactors
from svf_rl.generation.weights import SharedWeights
from svf_rl.models.arguments import ModelArguments

_SEQUENCES = 512
"""That vLLM decodes together: with as many as are asked for at once, a search takes a fifth less than with 256."""


def start_vllm(
    model: ModelArguments,
    engine: EngineArguments,
    max_length: int,
    share: float,
    shared: SharedWeights | None = None,
) -> CompletionGenerator:
    """An engine with the base model, on that share of the GPU where `engine` names no other, `shared` with a
    model. Raises `SVFError` where vLLM is missing or does not start."""
    from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator

    try:
        return ColocatedVLLMGenerator(
            model.location,
            dtype=getattr(torch, model.dtype),
            seed=engine.seed,
            device="cuda" if torch.cuda.is_available() else "cpu",
            revision=model.model_revision,
            max_model_len=max_length,
            max_num_seqs=_SEQUENCES,
            gpu_memory_utilization=engine.gpu_memory_utilization or share,
            enforce_eager=engine.enforce_eager,
            trust_remote_code=model.trust_remote_code,
            shared=shared,
        )
    except CannotServeFactors:
        raise
    except SVFError as error:
        raise SVFError(f"{error}; --backend transformers is another way") from error


def start_transformers(
    base: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, batch_size: int | None
) -> CompletionGenerator:
    """Generation by the model itself."""
    from svf_rl.generation.transformers_generator import TransformersGenerator

    ends = base.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    eos = list(ends) if isinstance(ends, list | tuple) else [ends]
    pad = eos[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return TransformersGenerator(
        base, eos_token_ids=eos, pad_token_id=pad, batch_size=batch_size or 32, tokenizer=tokenizer
    )
