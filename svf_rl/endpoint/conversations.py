"""What a request says, for the classifier and the search."""

import json
from collections.abc import Mapping
from typing import Any

from svf_rl.errors import SVFError


def check_whole_characters(call: Mapping[str, Any]) -> None:
    """Raises `SVFError` for half of a surrogate pair, as a client sends it that cuts a text within a character."""
    try:
        json.dumps(call, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise SVFError("the request has half of a character (an unpaired surrogate): send whole ones") from error


def prompt_of(call: Mapping[str, Any]) -> list[dict[str, str]]:
    """Of the body of a completion. Raises `SVFError` where it is not one text."""
    prompt = call.get("prompt")
    if not isinstance(prompt, str):
        raise SVFError("auto reads one prompt in text: give prompt as a string, or name an expert")
    return [{"role": "user", "content": prompt}]


def messages_of(call: Mapping[str, Any]) -> list[dict[str, str]]:
    """Of the body of a chat, what is text in it. Raises `SVFError` where the user says nothing."""
    messages, found = call.get("messages"), []
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
            content = "\n".join(text for text in texts if isinstance(text, str))
        if isinstance(content, str) and isinstance(message.get("role"), str):
            found.append({"role": message["role"], "content": content})
    if not any(message["role"] == "user" and message["content"].strip() for message in found):
        raise SVFError("auto needs a message of the user with text, by which it chooses an expert")
    return found
