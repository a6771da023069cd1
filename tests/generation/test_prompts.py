"""Conversations through chat templates of several kinds: plain, trimming, without a system role, refusing."""

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from svf_rl.errors import SVFError
from svf_rl.generation.prompts import encode_prompts, render_prompt
from svf_rl.quickstart import model_path

QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}]
BEGUN = [*QUESTION, {"role": "assistant", "content": "```python\n"}]

TURNS = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
DROPS_SYSTEM = (
    "{% for m in messages %}{% if m['role'] != 'system' %}<{{ m['role'] }}>{{ m['content'] }}</>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_path())


def test_a_question_is_followed_by_the_head_of_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    expected = tokenizer.apply_chat_template([QUESTION], add_generation_prompt=True)["input_ids"]
    assert encode_prompts(tokenizer, [QUESTION]) == expected
    assert encode_prompts(tokenizer, []) == []


def test_special_tokens_are_those_of_the_template_and_come_once(tokenizer: PreTrainedTokenizerBase) -> None:
    question, begun = encode_prompts(tokenizer, [QUESTION, BEGUN])
    assert question.count(tokenizer.bos_token_id) == begun.count(tokenizer.bos_token_id) == 1
    assert question[-1] == tokenizer.convert_tokens_to_ids("<|assistant|>")
    assert begun[-1] != tokenizer.eos_token_id


@pytest.mark.parametrize("template", [None, TURNS, NO_SYSTEM + TURNS, DROPS_SYSTEM])
def test_a_begun_answer_is_left_open_with_its_line_break(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    tokenizer.chat_template = template or tokenizer.chat_template
    assert render_prompt(tokenizer, BEGUN).endswith("```python\n")
    assert tokenizer.decode(encode_prompts(tokenizer, [BEGUN])[0]).endswith("```python\n")


@pytest.mark.parametrize("template", [NO_SYSTEM + TURNS, DROPS_SYSTEM])
def test_without_a_system_role_the_system_message_heads_the_users_turn(
    tokenizer: PreTrainedTokenizerBase, template: str
) -> None:
    tokenizer.chat_template = template
    assert render_prompt(tokenizer, QUESTION) == "<user>Be brief.\n\nHow many?</><assistant>"
    assert QUESTION[1]["content"] == "How many?"  # the data are left alone


def test_contents_may_be_parts_where_the_template_knows_them(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{% for part in messages[0]['content'] %}<{{ part['text'] }}>{% endfor %}"
    parts = [{"type": "text", "text": "How "}, {"type": "text", "text": "many?"}]
    assert render_prompt(tokenizer, [{"role": "user", "content": parts}]) == "<How ><many?>"


def test_a_system_message_and_a_begun_answer_may_be_parts(tokenizer: PreTrainedTokenizerBase) -> None:
    said = (
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}{{ m['content'] | map(attribute='text') | join }}"
    )
    for system in ("", "{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"):
        tokenizer.chat_template = (
            f"{{% for m in messages %}}{system}<{{{{ m['role'] }}}}>{said}{{% endif %}}</>{{% endfor %}}"
            "{% if add_generation_prompt %}<assistant>{% endif %}"
        )
        texts = [{"role": "system", "content": "Be brief."}, *QUESTION[1:], {"role": "assistant", "content": "So: "}]
        parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in texts]
        for count in (2, 3):
            assert render_prompt(tokenizer, parts[:count]) == render_prompt(tokenizer, texts[:count])
    with pytest.raises(SVFError, match="the system's turn must be text"):
        render_prompt(tokenizer, [{"role": "system", "content": [{"type": "image"}]}, *QUESTION[1:]])


def test_template_arguments_are_passed_on(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = TURNS + "{% if thinking %}<think>{% endif %}"
    assert render_prompt(tokenizer, QUESTION[1:], thinking=True).endswith("<assistant><think>")
    assert render_prompt(tokenizer, QUESTION[1:], chat_template="fixed") == "fixed"


def test_no_template_and_a_template_that_refuses_are_one_line(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{{ raise_exception('turns must\nalternate') }}"
    for conversation in (QUESTION, QUESTION[1:]):
        with pytest.raises(SVFError, match="refuses the conversation: turns must alternate"):
            encode_prompts(tokenizer, [conversation])
    tokenizer.chat_template = None
    with pytest.raises(SVFError, match="has no chat template"):
        encode_prompts(tokenizer, [QUESTION])
    with pytest.raises(SVFError, match="has no chat template"):
        render_prompt(tokenizer, QUESTION)
