"""A Modelfile: the chat template in the language of Go, or none at all."""

from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from svf_rl.export.ollama import MODELFILE, chat_parts, write_modelfile
from svf_rl.quickstart import model_path

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' "
    "}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OF_ITS_OWN = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}" + CHATML
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start|>' + message['role'] + '<|end|>\n\n' + "
    "message['content'] | trim + '<|eot|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
ALTERNATING = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + "
    "' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + '</s>' }}{% else %}"
    "{{ raise_exception('no system') }}{% endif %}{% endfor %}"
)
COUNTING = "{% for message in messages %}{{ loop.index }}: {{ message['content'] }}\n{% endfor %}"
INTO_THE_FIRST = (
    "{% set first = messages[0]['content'] + '\n' if messages[0]['role'] == 'system' else '' %}"
    "{% for message in messages if message['role'] != 'system' %}{{ '<' + message['role'] + '>' + (first if loop.first "
    "else '') + message['content'] }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_path())


@pytest.mark.parametrize(
    ("template", "turns", "reply", "system"),
    [
        (CHATML, ("<|im_start|>user\n", "<|im_end|>\n"), "<|im_start|>assistant\n", None),
        (OF_ITS_OWN, ("<|im_start|>user\n", "<|im_end|>\n"), "<|im_start|>assistant\n", "You help."),
        (LLAMA3, ("<|start|>user<|end|>\n\n", "<|eot|>"), "<|start|>assistant<|end|>\n\n", None),
        (ALTERNATING, ("[INST] ", " [/INST]"), "", None),
    ],
)
def test_turns_between_two_texts_are_found(
    tokenizer: PreTrainedTokenizerBase, template: str, turns: Any, reply: str, system: str | None
) -> None:
    tokenizer.chat_template = template
    parts = chat_parts(tokenizer)
    assert parts is not None
    assert (parts.turns["user"], parts.reply, parts.system) == (turns, reply, system)
    assert ("system" in parts.turns) == (template != ALTERNATING)


@pytest.mark.parametrize("template", [COUNTING, INTO_THE_FIRST])
def test_another_form_is_left_out(tokenizer: PreTrainedTokenizerBase, template: str, tmp_path) -> None:
    tokenizer.chat_template = template
    assert chat_parts(tokenizer) is None
    assert not write_modelfile(tmp_path, "model.gguf", tokenizer, [2], 64)
    assert (tmp_path / MODELFILE).read_text() == 'FROM ./model.gguf\nPARAMETER num_ctx 64\nPARAMETER stop "<|end|>"\n'


def test_the_modelfile_says_all_of_a_chat(tokenizer: PreTrainedTokenizerBase, tmp_path) -> None:
    tokenizer.chat_template = OF_ITS_OWN.replace("<|im_start|>", "<{{")
    assert write_modelfile(tmp_path, "model.gguf", tokenizer, [2, 3], 128)
    lines = (tmp_path / MODELFILE).read_text()
    assert lines.startswith('FROM ./model.gguf\nPARAMETER num_ctx 128\nPARAMETER stop "<|end|>"\nPARAMETER stop "')
    opened = '<{{ "{{" }}'
    assert f'{{{{ range .Messages }}}}{{{{ if eq .Role "system" }}}}{opened}system\n' in lines
    assert f'{{{{ else if eq .Role "user" }}}}{opened}user\n{{{{ .Content }}}}<|im_end|>\n' in lines
    assert f'{{{{ end }}}}{{{{ end }}}}{opened}assistant\n"""' in lines
    assert "You help." in lines.partition("SYSTEM")[2]


def test_a_model_without_chats_continues_the_prompt(tokenizer: PreTrainedTokenizerBase, tmp_path) -> None:
    tokenizer.chat_template = None
    assert write_modelfile(tmp_path, "model.gguf", tokenizer, [2], 64)
    assert 'TEMPLATE """{{ .Prompt }}"""' in (tmp_path / MODELFILE).read_text()
