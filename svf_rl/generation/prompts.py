"""Conversations as token ids, through the model's own chat template."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from svf_rl.errors import SVFError

Conversation = Sequence[Mapping[str, str]]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], **template_arguments: Any
) -> list[list[int]]:
    """
    The tokens after which a model writes its answer.

    A conversation that ends with the user's turn is followed by the head of the assistant's; one that ends with an
    assistant's turn is left open after it, trailing white space included, so that the model goes on from there.

    Some templates refuse a system message (Gemma), some leave it out without a word. For these it becomes the first
    paragraph of the first user turn, as their makers advise.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): its chat template is used.
        conversations (`Sequence`): each a list of `{"role", "content"}` messages.
        **template_arguments: passed on to the template, such as `enable_thinking=False`, or `chat_template`.

    Returns:
        `list[list[int]]`: one list a conversation, with the template's own special tokens and no others.

    Raises:
        SVFError: no chat template, or one that refuses the conversation.
    """
    if tokenizer.chat_template is None and not template_arguments.get("chat_template"):
        raise SVFError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template: use an instruction-tuned model, or save "
            "a chat_template.jinja beside the tokenizer"
        )
    texts = [render_prompt(tokenizer, conversation, **template_arguments) for conversation in conversations]
    return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []


def render_prompt(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, **template_arguments: Any) -> str:
    """What [`encode_prompts`] turns into tokens, for one conversation."""
    system = conversation[0]["content"] if conversation[0]["role"] == "system" else ""
    try:
        text = _rendered(tokenizer, conversation, template_arguments)
        if system.strip() in text:
            return text
    except TemplateError as error:
        if not system:
            raise _refused(tokenizer, error) from error
    try:
        return _rendered(tokenizer, _folded(conversation), template_arguments)
    except TemplateError as error:
        raise _refused(tokenizer, error) from error


def _rendered(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, arguments: Mapping[str, Any]) -> str:
    last = conversation[-1]
    prefilled = last["role"] == "assistant"
    text = tokenizer.apply_chat_template(
        list(conversation),
        tokenize=False,
        add_generation_prompt=not prefilled,
        continue_final_message=prefilled,
        **arguments,
    )
    stripped = last["content"].rstrip()
    if prefilled and text.endswith(stripped):  # most templates trim each turn
        text += last["content"][len(stripped) :]
    return text


def _folded(conversation: Conversation) -> list[dict[str, str]]:
    """The system message at the head of the first user turn."""
    system, *turns = [dict(message) for message in conversation]
    first = next((turn for turn in turns if turn["role"] == "user"), None)
    if first is not None:
        first["content"] = f"{system['content']}\n\n{first['content']}"
    return turns


def _refused(tokenizer: PreTrainedTokenizerBase, error: TemplateError) -> SVFError:
    detail = " ".join(str(error).split())
    return SVFError(f"the chat template of {tokenizer.name_or_path} refuses the conversation: {detail}")


def check_prompt_lengths(prompts: Sequence[list[int]], limit: int) -> None:
    """Raises `SVFError` where a prompt leaves no room for an answer among the `limit` tokens that vLLM takes."""
    longest = max(map(len, prompts))
    if longest >= limit:
        raise SVFError(f"a prompt has {longest} tokens, of {limit} that fit: raise vllm_max_model_length")
