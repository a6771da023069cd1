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
        base = AutoModelForCausalLM.from_pretrained(
            model.location,
            revision=model.model_revision,
            dtype=model.dtype,
            attn_implementation=model.attn_implementation,
            trust_remote_code=model.trust_remote_code,
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise loading_error("model", model.location, error, model.model_revision) from error
    if keep_soft_cap(base) and model.attn_implementation == "sdpa":
        raise SVFError(
            f"sdpa leaves out the soft cap of {model.location}'s attention: set attn_implementation to eager or "
            "flash_attention_2, or remove it"
        )
    return base


def keep_soft_cap(base: PreTrainedModel) -> bool:
    """Gemma 2 caps the logits of its attention, which PyTorch's own attention cannot do and transformers then leaves
    out without a word: switch to the eager one. Returns whether that was needed."""
    text = base.config.get_text_config()
    needed = bool(getattr(text, "attn_logit_softcapping", None)) and text._attn_implementation == "sdpa"
    if needed:
        base.set_attn_implementation("eager")
    return needed


def load_adapted(model: ModelArguments, adapter: AdapterArguments) -> PeftModel:
    """The base model with the adapter that is to be trained."""
    return adapter.kind.put_on(load_base(model), model, adapter)
