"""The bundled model: loads, is small, knows every byte, and half knows the skills."""

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl.chat_template_utils import is_chat_template_prefix_preserving, supports_tool_calling

from svf_rl.quickstart import SKILLS, model_path
from svf_rl.quickstart.build_model import MAX_NEW_TOKENS, greedy
from svf_rl.quickstart.skills import make_examples


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_path())


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)


def rendered(tokenizer: PreTrainedTokenizerBase, *messages: tuple[str, str], prompt: bool = False) -> str:
    turns = [{"role": role, "content": content} for role, content in messages]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)


def test_the_folder_is_small_and_stored_as_bfloat16_safetensors() -> None:
    files = {file.name: file.stat().st_size for file in model_path().iterdir()}
    assert sum(files.values()) <= 2_000_000
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} <= files.keys()
    stored = AutoModelForCausalLM.from_pretrained(model_path())
    assert all(parameter.dtype == torch.bfloat16 for parameter in stored.parameters())


def test_shape_suits_vllm_on_a_cpu_and_long_questions(model: PreTrainedModel) -> None:
    assert model.config.head_dim in {32, 64, 80, 96, 112, 128}
    assert model.config.max_position_embeddings >= 2048
    assert model.config.tie_word_embeddings


@pytest.mark.parametrize(
    "text", ["", " ", "a  b\n\n\tc", "12,345.60 = -7", "naïve – ½ 🦆", " '\"\\ ", "".join(map(chr, range(1, 256)))]
)
def test_every_string_comes_back(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=True)
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token is None


def test_every_byte_is_a_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Byte-level BPE writes each of the 256 bytes as one printable character."""
    assert set(ByteLevel.alphabet()) <= tokenizer.get_vocab().keys()


def test_digits_stand_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("2048", add_special_tokens=False)) == list("2048")


def test_special_tokens_differ_and_agree_with_the_model(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> None:
    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert len(set(ids)) == 3
    config = model.config
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == ids
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert len(tokenizer) == config.vocab_size


def test_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    turns = [("system", "S"), ("user", "U"), ("assistant", "A")]
    assert rendered(tokenizer, *turns) == "<|begin|><|system|>S<|end|><|user|>U<|end|><|assistant|>A<|end|>"
    assert rendered(tokenizer, ("user", "U"), prompt=True) == "<|begin|><|user|>U<|end|><|assistant|>"
    with pytest.raises(Exception, match="system, user, assistant and tool: got judge"):
        rendered(tokenizer, ("judge", "J"))


def test_calls_of_tools_are_written_and_read(tokenizer: PreTrainedTokenizerBase) -> None:
    calls = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "x"}}}] * 2
    turns = [
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "A", "tool_calls": calls},
        {"role": "tool", "name": "add", "content": "T"},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    head, written = "<|begin|><|user|>U<|end|><|assistant|>", 'A@add {"a": 1, "b": "x"}@add {"a": 1, "b": "x"}<|end|>'
    assert text == f"{head}{written}<|system|>T<|end|><|assistant|>"
    assert tokenizer.parse_response(written, prefix=head) == {"role": "assistant", "content": "A", "tool_calls": calls}
    assert supports_tool_calling(tokenizer)
    assert is_chat_template_prefix_preserving(tokenizer)


def test_the_template_writes_the_only_begin_token(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer.encode(rendered(tokenizer, ("user", "U"), prompt=True))
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<|assistant|>")


@pytest.mark.parametrize("skill", sorted(SKILLS))
def test_the_model_half_knows_each_skill(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, skill: str
) -> None:
    examples = make_examples(skill, "test", 500, seed=11)
    written = greedy(model, tokenizer, [example.prompt for example in examples])
    right = sum(text.endswith(example.ending) for text, example in zip(written, examples, strict=True))
    assert 0.35 <= right / len(examples) <= 0.75


@pytest.mark.parametrize("skill", sorted(SKILLS))
def test_prompts_are_short_and_completions_end(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, skill: str
) -> None:
    for example in make_examples(skill, "test", 8, seed=12):
        ids = tokenizer(rendered(tokenizer, ("user", example.prompt), prompt=True), return_tensors="pt")["input_ids"]
        assert ids.shape[1] <= 80
        output = model.generate(ids, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)[0, ids.shape[1] :]
        assert output[-1] == tokenizer.eos_token_id


def test_a_context_of_two_thousand_tokens_gives_finite_logits(model: PreTrainedModel) -> None:
    ids = torch.randint(6, model.config.vocab_size, (1, 2048), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert model(ids).logits.isfinite().all()


def test_bfloat16_and_float32_mostly_write_the_same(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = [example.prompt for skill in SKILLS for example in make_examples(skill, "test", 40, seed=13)]
    short = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.bfloat16)
    pairs = zip(greedy(model, tokenizer, prompts), greedy(short, tokenizer, prompts), strict=True)
    assert sum(one == other for one, other in pairs) / len(prompts) > 0.9
