"""The vLLM engine in the process of the trainer."""

from importlib.util import find_spec

from svf_rl.errors import SVFError


def require_vllm() -> None:
    """Raises `SVFError` where vLLM is not installed."""
    if find_spec("vllm") is None:
        raise SVFError(
            "vLLM is not installed: pip install 'svf-rl[cuda]' (without a GPU: 'svf-rl[cpu]'), or generate with "
            "transformers (use_vllm: false in a recipe, --backend transformers on the command line)"
        )
