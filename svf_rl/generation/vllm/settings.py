"""A request as vLLM's own settings, and its answer."""

from typing import Any

from svf_rl.errors import SVFError, one_line
from svf_rl.generation.sampling import Completion, Sampling

# What reads the answers relies on vLLM's defaults.
_OURS = ("output_kind", "flat_logprobs", "detokenize", "skip_clone")


def sampling_params(sampling: Sampling, seed: int) -> Any:
    """`vllm.SamplingParams` of the request. Raises `SVFError` where vLLM does not take them."""
    import msgspec
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    settings = {"n": 1, **sampling.vllm_settings(seed)}
    # a text takes time, and only stop strings read it; so does a deep copy, and nobody else has these settings
    ours = {"flat_logprobs": True, "detokenize": bool(sampling.stop), "skip_clone": True}
    try:
        for name in sampling.extra:
            if name in settings or name in _OURS:
                raise ValueError(f"{name} is the trainer's: remove it")
        # as its constructor, and with the types
        return msgspec.convert({**settings, **sampling.extra, **ours}, SamplingParams)
    except (TypeError, ValueError, VLLMValidationError) as error:
        raise SVFError(f"generation_kwargs or another sampling key does not suit vLLM: {one_line(error)}") from error


def completion_of(output: Any) -> Completion:
    """Of vLLM's output for a request with such settings."""
    (choice,), logprobs = output.outputs, None
    if choice.logprobs is not None:  # flat: those of all positions in a row, of the chosen token first
        logprobs = [choice.logprobs.logprobs[start] for start in choice.logprobs.start_indices]
    return Completion(list(choice.token_ids), logprobs, choice.finish_reason == "stop")
