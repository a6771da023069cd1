"""From a recipe's arguments to a model with its adapter, and its tokenizer."""

from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from svf_rl.errors import SVFError
from svf_rl.models.arguments import AdapterArguments, ModelArguments
from svf_rl.models.kinds.kind import first_line


def load_tokenizer(model: ModelArguments) -> PreTrainedTokenizerBase:
    """The tokenizer, padding on the left as generation needs it."""
    try:
        return AutoTokenizer.from_pretrained(
            model.location,
            revision=model.model_revision,
            trust_remote_code=model.trust_remote_code,
            padding_side="left",
        )
    except (OSError, ValueError) as error:
        raise SVFError(f"no tokenizer in {model.location}: {first_line(error)}") from error


def load_base(model: ModelArguments) -> PreTrainedModel:
    """The base model, on the CPU."""
    try:
        return AutoModelForCausalLM.from_pretrained(
            model.location,
            revision=model.model_revision,
            dtype=model.dtype,
            attn_implementation=model.attn_implementation,
            trust_remote_code=model.trust_remote_code,
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise SVFError(f"cannot load the model {model.location}: {first_line(error)}") from error


def load_adapted(model: ModelArguments, adapter: AdapterArguments) -> PeftModel:
    """The base model with the adapter that is to be trained."""
    return adapter.kind.put_on(load_base(model), model, adapter)
