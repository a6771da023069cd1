"""The conversations that the bundled model is pre-trained on: one question, or many to fill a long context."""

from collections.abc import Iterable
from random import Random

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from svf_rl.quickstart.dispatch_skill import CLASSES, DISPATCH_PROMPT, classified
from svf_rl.quickstart.skills import SOURCES, split_problems

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Answer the question.",
    "Think step by step, then give the answer.",
    "Below is an instruction that describes a task. Write a response that completes the request.",
    "You solve small problems with care.",
    "You write Python code.",
    "Finish with the answer.",
)
# Words that change nothing, put between the others so that the skills survive sentences never seen.
FILLERS = (
    "now please so well today also just of these that we see last week there day a the and to it here one but at is "
    "much next this i can you as given know keep look total in count tell me after big new my really very she he they"
).split()
# Share of the questions: what is harder to learn comes more often.
SHARES = {"math": 0.4, "choice": 0.45, "code": 0.15}
# Share of the conversations in which the class of each question is asked for.
DISPATCH_SHARE = 0.08
IGNORE = -100

Batch = tuple[Tensor, Tensor]
"""Token ids and labels, both (rows, length); labels are `IGNORE` outside the assistant's turns."""


def labelled(tokenizer: PreTrainedTokenizerBase, pieces: Iterable[tuple[str, bool]]) -> tuple[list[int], list[int]]:
    """(ids, labels) of texts one after another, of which those marked `True` are learnt."""
    ids: list[int] = []
    labels: list[int] = []
    for text, learnt in pieces:
        tokens = tokenizer.encode(text, add_special_tokens=False)
        ids += tokens
        labels += tokens if learnt else [IGNORE] * len(tokens)
    return ids, labels


class Corpus:
    """Endless questions from the `train` problems of all skills, in standard wording."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        self.tokenizer = tokenizer
        self.random = Random(f"corpus {seed}")

    def _turn(self, careless: float, dispatch: bool) -> tuple[str, str]:
        """One (question, completion); the completion is the habit's with probability `careless`."""
        shares = dict.fromkeys(CLASSES, 1.0) if dispatch else SHARES
        skill = self.random.choices(list(shares), list(shares.values()))[0]
        problem = self.random.choice(split_problems(skill, "train"))
        example = SOURCES[skill].word(problem, self.random, False)
        if dispatch:
            example = classified(example, CLASSES[skill])
        prompt = self._loosened(example.prompt) if self.random.random() < 0.5 else example.prompt
        return prompt, example.careless if self.random.random() < careless else example.completion

    def _loosened(self, prompt: str) -> str:
        """`prompt` with up to five filler words in it, none of them right before a number."""
        words = prompt.split(" ")
        for _ in range(self.random.randint(1, 5)):
            place = self.random.randrange(len(words) + 1)
            if place == len(words) or not words[place][:1].isdigit():
                words.insert(place, self.random.choice(FILLERS))
        return " ".join(words)

    def _conversation(self, turns: int, careless: float) -> tuple[list[int], list[int]]:
        """(ids, labels) of one conversation; one in six of those that want answers has a system prompt."""
        pieces: list[tuple[str, bool]] = [("<|begin|>", False)]
        dispatch = self.random.random() < DISPATCH_SHARE
        if dispatch or self.random.random() < 1 / 6:
            system = DISPATCH_PROMPT if dispatch else self.random.choice(SYSTEM_PROMPTS)
            pieces.append((f"<|system|>{system}<|end|>", False))
        for _ in range(turns):
            question, completion = self._turn(careless, dispatch)
            pieces += [(f"<|user|>{question}<|end|><|assistant|>", False), (f"{completion}<|end|>", True)]
        return labelled(self.tokenizer, pieces)

    def batch(self, rows: int, turns: int, careless: float, parts: int) -> list[Batch]:
        """`rows` conversations of `turns` questions each, cut by length into `parts`, so that little is padding.

        Padding stands on the right, where causal attention never sees it.
        """
        conversations = sorted(
            (self._conversation(turns, careless) for _ in range(rows)), key=lambda pair: len(pair[0])
        )
        size = rows // parts
        return [self._padded(conversations[start : start + size]) for start in range(0, rows, size)]

    def _padded(self, conversations: list[tuple[list[int], list[int]]]) -> Batch:
        ids, labels = ([torch.tensor(part) for part in parts] for parts in zip(*conversations, strict=True))
        pad = self.tokenizer.pad_token_id
        return (
            pad_sequence(ids, batch_first=True, padding_value=pad),
            pad_sequence(labels, batch_first=True, padding_value=IGNORE),
        )
