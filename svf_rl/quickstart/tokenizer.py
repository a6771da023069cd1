"""The bundled model's tokenizer: byte-level BPE with single digits, and a chat template for three roles."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
TURNS = {role: f"<|{role}|>" for role in ("system", "user", "assistant")}

# A turn is its marker, its text and <|end|>; the assistant's <|end|> is the end of a completion. What a tool says is in
# a turn of the system's, and a call of one is like `@add {"a": 1, "b": 2}`.
CHAT_TEMPLATE = (
    "{{- bos_token -}}\n"
    "{%- if tools -%}\n"
    "{{- '<|system|>Tools:' -}}\n"
    "{%- for tool in tools -%}\n"
    "{{- ' @' + tool.function.name + ' ' + tool.function.parameters.properties.keys() | join(', ') -}}\n"
    "{%- endfor -%}\n"
    "{{- '<|end|>' -}}\n"
    "{%- endif -%}\n"
    "{%- for message in messages -%}\n"
    "{%- if message['role'] not in ['system', 'user', 'assistant', 'tool'] -%}\n"
    "{{- raise_exception('Roles are system, user, assistant and tool: got ' + message['role']) -}}\n"
    "{%- endif -%}\n"
    "{{- '<|' + message['role'].replace('tool', 'system') + '|>' + (message['content'] or '') -}}\n"
    "{%- for call in message['tool_calls'] or [] -%}\n"
    "{{- '@' + call.function.name + ' ' + call.function.arguments | tojson -}}\n"
    "{%- endfor -%}\n"
    "{{- '<|end|>' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}\n"
)
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "tool_calls": {
            "open_pattern": r"@(?P<name>\w+) (?=\{)",
            "close_pattern": r"(?<=\})(?=@\w+ \{)|<\|end\|>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"close_pattern": r"<\|end\|>", "content": "text"},
    },
}
"""How transformers reads the calls in what the model wrote."""


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer of `vocabulary` tokens: 6 special, 256 bytes, and merges learnt from `texts`.

    All 256 bytes are tokens, so there is no unknown token and every string comes back unchanged. The template writes
    the begin token; encoding adds none, so that a rendered prompt does not get it twice.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    special = [PAD, BEGIN, END, *TURNS.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(TURNS.values()),
        chat_template=CHAT_TEMPLATE,
        response_template=RESPONSE_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=2048,
    )
