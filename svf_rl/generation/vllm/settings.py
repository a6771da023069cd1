"""A request as vLLM's own settings."""

from typing import Any

from svf_rl.errors import SVFError, one_line
from svf_rl.generation.sampling import Sampling

# What reads the answers relies on vLLM's defaults.
_OURS = ("output_kind", "flat_logprobs", "detokenize")


def sampling_params(sampling: Sampling, seed: int) -> Any:
    """`vllm.SamplingParams` of the request. Raises `SVFError` where vLLM does not take them."""
    import msgspec
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    settings = {"n": 1, **sampling.vllm_settings(seed)}
    # a text takes time, and only stop strings read it
    ours = {"flat_logprobs": True, "detokenize": bool(sampling.stop)}
    try:
        for name in sampling.extra:
            if name in settings or name in _OURS:
                raise ValueError(f"{name} is the trainer's: remove it")
        # as its constructor, and with the types
        return msgspec.convert({**settings, **sampling.extra, **ours}, SamplingParams)
    except (TypeError, ValueError, VLLMValidationError) as error:
        raise SVFError(f"generation_kwargs or another sampling key does not suit vLLM: {one_line(error)}") from error
