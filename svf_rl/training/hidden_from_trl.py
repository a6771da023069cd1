"""What TRL's constructor is not to see."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel

from svf_rl.settings.config import SVFReinforceConfig


@contextmanager
def hide_from_trl(args: SVFReinforceConfig, model: Any = None) -> Iterator[None]:
    """
    Hide from TRL's constructor what our trainer does itself: the engine (`use_vllm`), the reference (`beta`: TRL would
    copy the adapter for it), greedy decoding (TRL divides logits by the temperature), and that bitsandbytes has
    quantised the `model` (TRL would round what is trained to bf16, too coarse for `z`).
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    quantised = [name for name in ("is_loaded_in_4bit", "is_loaded_in_8bit") if getattr(base, name, False)]
    hidden: list[tuple[Any, str, Any]] = [
        (args, "use_vllm", False),
        (args, "beta", 0.0),
        (args, "temperature", args.temperature or 1.0),
        *((base, name, False) for name in quantised),
    ]
    shown = [(owner, name, getattr(owner, name)) for owner, name, _ in hidden]
    for owner, name, value in hidden:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in shown:
            setattr(owner, name, value)
