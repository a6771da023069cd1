"""Conversations as token ids through the model's chat template, and prompts joined with continuations."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from svf_rl.errors import SVFError, one_line

# A template is a program: beside refusals of its own, it raises what a mistake in it or in a message raises.
# transformers has a ValueError for several templates without a default, or a turn that cannot be continued.
TEMPLATE_ERRORS = (TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)

Conversation = Sequence[Mapping[str, Any]]  # messages of "role" and "content", a text or a list of parts


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], **template_arguments: Any
) -> list[list[int]]:
    """
    The tokens after which a model writes its answer, a list for each conversation, with the special tokens of the
    tokenizer's chat template and no others. `template_arguments` are passed to the template, such as
    `enable_thinking=False`; `chat_template` replaces it.

    A conversation that ends with the user's turn is followed by the head of the assistant's turn. One that ends with an
    assistant's turn is left open after it, including trailing white space, so that the model continues there.

    Some templates refuse a system message (Gemma), some silently drop it. For these it becomes the first paragraph of
    the first user turn, as the authors of these models advise.

    Raises:
        SVFError: no chat template, or one that refuses the conversation.
    """
    texts = [render_prompt(tokenizer, conversation, **template_arguments) for conversation in conversations]
    return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []


def check_template_arguments(given: Mapping[Any, Any] | None) -> None:
    """Raises `SVFError` for `chat_template_kwargs` that no template could get: what is set here already, or no name."""
    ours = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
    for name in given or {}:
        if not isinstance(name, str):
            raise SVFError(f"chat_template_kwargs: {name!r} is not a name, as in {{enable_thinking: false}}")
        if name in ours - {"chat_template", "documents", "tools", "kwargs"}:
            raise SVFError(f"chat_template_kwargs must not hold {name}, which is set already: leave it out")


def parts_text(value: Any) -> str | None:
    """The text of a list of content parts that are all text; `None` of anything else."""
    if isinstance(value, list) and value and all(isinstance(p, dict) and p.get("type") == "text" for p in value):
        return "".join(str(part.get("text") or "") for part in value)
    return None


def _said(message: Mapping[str, Any]) -> str:
    """The text of a message, whose content may be a list of parts. Raises `TypeError` where not all of it is text."""
    content = message["content"]
    text = content if isinstance(content, str) else parts_text(content)
    if text is None:
        raise TypeError(f"the {message['role']}'s turn must be text")
    return text


def render_prompt(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, **template_arguments: Any) -> str:
    """The text that [`encode_prompts`] turns into tokens, for one conversation."""
    if tokenizer.chat_template is None and not template_arguments.get("chat_template"):
        raise SVFError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template: use an instruction-tuned model, or save "
            "a chat_template.jinja in the tokenizer's folder"
        )
    try:
        system = _said(conversation[0]) if conversation[0]["role"] == "system" else ""
        try:
            text = _apply_template(tokenizer, conversation, template_arguments)
        except TEMPLATE_ERRORS:
            if not system:
                raise
        else:
            if system.strip() in text:
                return text
        return _apply_template(tokenizer, _fold_system(conversation), template_arguments)
    except TEMPLATE_ERRORS as error:
        raise SVFError(
            f"the chat template of {tokenizer.name_or_path} refuses the conversation: {one_line(error)}"
        ) from error


def _apply_template(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, arguments: Mapping[str, Any]
) -> str:
    prefilled = conversation[-1]["role"] == "assistant"
    said = _said(conversation[-1]) if prefilled else ""
    if prefilled and not said.strip():  # a turn that begins with nothing but white space
        return _apply_template(tokenizer, conversation[:-1], arguments) + said
    text = tokenizer.apply_chat_template(
        list(conversation),
        tokenize=False,
        add_generation_prompt=not prefilled,
        continue_final_message=prefilled,
        **arguments,
    )
    if not prefilled:
        return text
    stripped = said.rstrip()
    if not text.endswith(said) and text.endswith(stripped):  # most templates trim each turn
        text += said[len(stripped) :]
    return text


def _fold_system(conversation: Conversation) -> list[dict[str, Any]]:
    """The conversation with its system message as the first paragraph of the first user turn."""
    system, *turns = [dict(message) for message in conversation]
    first = next((turn for turn in turns if turn["role"] == "user"), None)
    if first is None:
        raise ValueError("there is no user's turn that could take the system message")
    paragraph = f"{_said(system)}\n\n"
    parts = isinstance(first["content"], list)
    first["content"] = (
        [{"type": "text", "text": paragraph}, *first["content"]] if parts else paragraph + first["content"]
    )
    return turns


def check_prompt_lengths(prompts: Sequence[list[int]], limit: int) -> None:
    """Raises `SVFError` where a prompt leaves no room for an answer among the `limit` tokens that vLLM takes."""
    longest = max(map(len, prompts), default=0)
    if longest >= limit:
        raise SVFError(f"a prompt has {longest} tokens, of {limit} that fit: raise vllm_max_model_length")


def join_continuations(
    prompts: Sequence[list[int]], continuations: Sequence[list[int]], limit: int | None
) -> list[list[int]]:
    """Each prompt's token ids followed by those of its continuation. Raises `SVFError` where their numbers differ, one
    is empty, or both together are longer than `limit` tokens (`None`: no limit)."""
    if len(prompts) != len(continuations):
        raise SVFError(f"{len(prompts)} prompts and {len(continuations)} continuations: give one for each prompt")
    sequences = []
    for index, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        for what, ids in (("prompt", prompt), ("continuation", continuation)):
            if not ids:
                raise SVFError(f"{what} {index} has no tokens: it has no log-likelihood; leave it out")
        length = len(prompt) + len(continuation)
        if limit is not None and length > limit:
            raise SVFError(
                f"prompt {index} and its continuation have {length} tokens, of {limit} that fit: shorten them, or "
                "raise the generator's limit"
            )
        sequences.append([*prompt, *continuation])
    return sequences
