"""Saved adapters of any kind, put onto a model."""

from peft import PeftModel
from safetensors import SafetensorError
from torch import nn

from svf_rl.errors import SVFError


def load_saved(base: nn.Module, path: str, name: str = "default") -> PeftModel:
    """`base` with a saved adapter, to be trained further. Raises `SVFError` for one that is missing, damaged, or of
    another base model."""
    try:
        return PeftModel.from_pretrained(base, path, adapter_name=name, is_trainable=True)
    except SVFError:
        raise
    except SafetensorError as error:
        raise SVFError(f"the adapter file in {path} is damaged ({first_line(error)}): save it again") from error
    except (OSError, ValueError, KeyError) as error:
        raise SVFError(f"no adapter in {path}: {first_line(error)}") from error
    except RuntimeError as error:  # PEFT's, where shapes differ
        detail = " ".join(str(error).split())[:300]
        raise SVFError(f"the adapter in {path} does not fit this base model: {detail}") from error


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
