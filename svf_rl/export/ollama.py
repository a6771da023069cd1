"""A `Modelfile` beside a GGUF file: what Ollama needs to know of a chat."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from svf_rl.storage.files import write_file

MODELFILE = "Modelfile"
_SYSTEM, _USER, _ANSWER, _NEXT = "\ue000", "\ue001", "\ue002", "\ue003"  # private letters, which no template holds


@dataclass(frozen=True)
class ChatParts:
    """
    A chat template of the plain form: each turn is put between two texts, whatever comes before it.

    Args:
        turns (`dict[str, tuple[str, str]]`): Before and after the content, by role; `system` where there is one.
        reply (`str`): What the model continues.
        system (`str`, *optional*): Of a chat that has none of its own.
    """

    turns: dict[str, tuple[str, str]]
    reply: str
    system: str | None = None

    def render(self, messages: list[dict[str, str]]) -> str:
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        turns = [(self.turns[message["role"]], message["content"]) for message in messages]
        return "".join(f"{before}{content}{after}" for (before, after), content in turns) + self.reply

    def as_go(self) -> str:
        """In the template language of Go, as Ollama reads it."""
        branches = [
            f'{{{{ {"else " if i else ""}if eq .Role "{role}" }}}}{_literal(before)}{{{{ .Content }}}}{_literal(after)}'
            for i, (role, (before, after)) in enumerate(self.turns.items())
        ]
        return f"{{{{ range .Messages }}}}{''.join(branches)}{{{{ end }}}}{{{{ end }}}}{_literal(self.reply)}"


def write_modelfile(folder: Path, file: str, tokenizer: PreTrainedTokenizerBase, ends: list[int], context: int) -> bool:
    """Write it beside `file`. Returns whether it holds a chat template: one that Ollama's language cannot say is left
    out, and Ollama then looks in the file itself."""
    lines = [f"FROM ./{file}", f"PARAMETER num_ctx {context}"]
    stops = tokenizer.convert_ids_to_tokens(ends)
    lines += [f'PARAMETER stop "{stop}"' for stop in stops if '"' not in stop]
    parts = chat_parts(tokenizer) if tokenizer.chat_template else None
    template = "{{ .Prompt }}" if not tokenizer.chat_template else None if parts is None else parts.as_go()
    if template is not None and '"""' not in template:
        lines.append(f'TEMPLATE """{template}"""')
    if parts is not None and parts.system is not None and '"""' not in parts.system:
        lines.append(f'SYSTEM """{parts.system}"""')
    write_file(folder / MODELFILE, "\n".join(lines) + "\n")
    return template is not None


def chat_parts(tokenizer: PreTrainedTokenizerBase) -> ChatParts | None:
    """The parts of a tokenizer's chat template, found by rendering it; `None` for one of another form."""
    chat = [_said("user", _USER), _said("assistant", _ANSWER), _said("user", _NEXT)]
    try:
        plain, asked = _render(tokenizer, chat, False), _render(tokenizer, chat)
        ended = _render(tokenizer, chat[:2], False)
    except TemplateError:
        return None
    if any(plain.count(letter) != 1 for letter in (_USER, _ANSWER, _NEXT)) or not asked.startswith(plain):
        return None
    start, _, rest = plain.partition(_USER)
    after_user = plain.partition(_NEXT)[2]
    after_answer = ended.partition(_ANSWER)[2]
    before_answer = rest.partition(_ANSWER)[0].removeprefix(after_user)
    before_user = rest.partition(_ANSWER)[2].partition(_NEXT)[0].removeprefix(after_answer)
    turns = {"user": (before_user, after_user), "assistant": (before_answer, after_answer)}
    start = start.removeprefix(tokenizer.bos_token or "")  # which llama.cpp puts there itself
    system = _system(tokenizer, chat, turns, start)
    first = start.removesuffix(before_user)
    default = None
    if system is not None:
        turns = {"system": system, **turns}
        if first.startswith(system[0]) and first.endswith(system[1]) and first:
            default = first[len(system[0]) : len(first) - len(system[1])]
    found = ChatParts(turns, asked.removeprefix(plain), default)
    return found if _is_the_same(tokenizer, found) else None


def _system(
    tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]], turns: dict[str, Any], start: str
) -> tuple[str, str] | None:
    try:
        text = _render(tokenizer, [_said("system", _SYSTEM), *chat], False).removeprefix(tokenizer.bos_token or "")
    except TemplateError:
        return None
    before, found, rest = text.partition(_SYSTEM)
    return (before, rest.partition(_USER)[0].removesuffix(turns["user"][0])) if found else None


def _is_the_same(tokenizer: PreTrainedTokenizerBase, parts: ChatParts) -> bool:
    """Whether the parts say what the template says, of chats with and without a system turn, short and long."""
    chats = [
        [_said("user", "a b")],
        [_said("user", "a"), _said("assistant", "b c"), _said("user", "d?")],
        [_said("user", "a"), _said("assistant", "b"), _said("user", "c"), _said("assistant", "d"), _said("user", "e")],
    ]
    if "system" in parts.turns:
        chats += [[_said("system", "be brief"), *chat] for chat in chats]
    try:
        texts = [_render(tokenizer, chat).removeprefix(tokenizer.bos_token or "") for chat in chats]
    except TemplateError:
        return False
    return texts == [parts.render(chat) for chat in chats]


def _render(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]], asked: bool = True) -> str:
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=asked))


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _literal(text: str) -> str:
    """Text that Go's templates leave alone."""
    return text.replace("{{", '{{ "{{" }}')
