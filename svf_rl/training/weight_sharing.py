"""Whether a colocated vLLM and the model in training hold their weights once, or twice."""

import logging
from collections.abc import Callable
from typing import Any

from peft import PeftModel
from peft.utils.other import ModulesToSaveWrapper
from transformers.integrations import is_deepspeed_zero3_enabled

from svf_rl.errors import SVFError
from svf_rl.generation import CompletionGenerator
from svf_rl.generation.vllm import CannotServeFactors
from svf_rl.generation.weights import SharedWeights
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.svf import svf_layers
from svf_rl.svf.offload import offload_weights, onload_weights

logger = logging.getLogger(__name__)


def prepare_sharing(model: Any, args: SVFReinforceConfig) -> None:
    """Before `model` is moved to its device: leave off there what the engine and the update do not need."""
    if isinstance(model, PeftModel) and args.vllm_weights != "merged" and _hindrance(model, args) is None:
        offload_weights(model)


def start_sharing(
    model: PeftModel, args: SVFReinforceConfig, start: Callable[[SharedWeights | None], CompletionGenerator]
) -> CompletionGenerator:
    """
    The engine that `start` builds for `model`, with shared weights where `args.vllm_weights` and the model let it.

    Raises:
        SVFError: the weights cannot be shared, and `args` ask for it.
    """
    if args.vllm_weights == "merged":
        return start(None)
    reason = _hindrance(model, args)
    if reason is None:
        offload_weights(model)
        try:
            return start(SharedWeights.of(model))
        except CannotServeFactors as error:
            if args.vllm_weights == "shared":
                raise
            reason = str(error)
            onload_weights(model)
    elif args.vllm_weights == "shared":
        raise SVFError(f"vllm_weights: shared does not go with {reason}: set it to merged")
    logger.warning("vLLM holds whole weights of its own (vllm_weights: merged): %s", reason)
    return start(None)


def _hindrance(model: PeftModel, args: SVFReinforceConfig) -> str | None:
    """What keeps the weights from being shared, as far as it is known without an engine."""
    if args.sharing_hindrance is not None:
        return args.sharing_hindrance
    hinders = {
        "an adapter other than SVF": not svf_layers(model),
        "a core that mixes singular directions, or biases": any(
            layer.more_than_multiplier() for layer in svf_layers(model).values()
        ),
        "modules_to_save": any(isinstance(module, ModulesToSaveWrapper) for module in model.modules()),
        "ZeRO-3": is_deepspeed_zero3_enabled(),
    }
    return next((what for what, there in hinders.items() if there), None)
