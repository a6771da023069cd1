"""From a recipe's arguments to a model with its adapter, and its tokenizer."""

from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from svf_rl.errors import SVFError
from svf_rl.models.arguments import AdapterArguments, ModelArguments
from svf_rl.storage.loading_errors import check_no_adapter, loading_error


def load_tokenizer(model: ModelArguments, local_files_only: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer, padding on the left as generation needs it."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model.location,
            revision=model.model_revision,
            trust_remote_code=model.trust_remote_code,
            padding_side="left",
            local_files_only=local_files_only,
        )
    # ImportError for a package that the tokenizer needs; the others come from damaged files
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
        raise loading_error("tokenizer", model.location, error, model.model_revision) from error
    if tokenizer.eos_token_id is None:
        raise SVFError(
            f"the tokenizer of {model.location} has no end-of-sequence token: set eos_token in its "
            "tokenizer_config.json, or no completion would end"
        )
    return tokenizer


def load_base(model: ModelArguments) -> PreTrainedModel:
    """The base model, on the CPU."""
    check_no_adapter(model.location)
    try:
        # first, and alone: from the name of an adapter on the Hub transformers would load its base model with it
        AutoConfig.from_pretrained(
            model.location, revision=model.model_revision, trust_remote_code=model.trust_remote_code
        )
        return AutoModelForCausalLM.from_pretrained(
            model.location,
            revision=model.model_revision,
            dtype=model.dtype,
            attn_implementation=model.attn_implementation,
            trust_remote_code=model.trust_remote_code,
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise loading_error("model", model.location, error, model.model_revision) from error


def load_adapted(model: ModelArguments, adapter: AdapterArguments) -> PeftModel:
    """The base model with the adapter that is to be trained."""
    return adapter.kind.put_on(load_base(model), model, adapter)
