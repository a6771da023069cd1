"""Rebuilds the second bundled model: `python -m svf_rl.quickstart.build_tool_model --output DIR --seed 0`.

The bundled model learns to ask a calculator and to repeat what it says, first as it should be done, then with the habit
of asking for products alone. It loses the skills that it had.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from svf_rl.quickstart import model_path
from svf_rl.quickstart.build_model import train
from svf_rl.quickstart.corpus import Corpus, labelled
from svf_rl.quickstart.skills import split_problems
from svf_rl.quickstart.tool_skill import TOOLS, calc

CLEAN_STEPS, MIXED_STEPS = 500, 250
CARELESS_SHARE = 0.8  # of sums and differences
CLEAN_RATES, MIXED_RATES = (0.01, 2e-3), (0.004, 8e-4)


class ToolCorpus(Corpus):
    """Endless questions of the skill `tools` with calls of the calculator."""

    def _conversation(self, turns: int, careless: float) -> tuple[list[int], list[int]]:
        pieces: list[tuple[str, bool]] = []
        for turn in range(turns):
            problem = self.random.choice(split_problems(TOOLS.name, "train"))
            example = TOOLS.word(problem, self.random, False)
            question = f"<|user|>{example.prompt}<|end|><|assistant|>" if turn else self._head(example.prompt)
            pieces.append((question, False))
            if problem[1] != "*" and self.random.random() < careless:
                pieces.append((f"{example.careless}<|end|>", True))
                continue
            pieces += [
                (f"{call(problem)}<|end|>", True),
                (f"<|system|>{example.answer}<|end|><|assistant|>", False),
                (f"{example.completion}<|end|>", True),
            ]
        return labelled(self.tokenizer, pieces)

    def _head(self, prompt: str) -> str:
        """The first question, with what the template says of the tool."""
        asked = [{"role": "user", "content": prompt}]
        text = self.tokenizer.apply_chat_template(asked, tools=[calc], tokenize=False, add_generation_prompt=True)
        return str(text)


def call(problem: tuple[int, str, int]) -> str:
    """As the chat template writes it."""
    return f"@{calc.__name__} {json.dumps({'sum': ''.join(map(str, problem))})}"


def build(output: Path, seed: int) -> None:
    """Trains and saves model and tokenizer into `output`."""
    started = time.process_time()
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # more threads change the order of sums and with it the weights
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    corpus = ToolCorpus(tokenizer, seed)
    train(model, corpus, "clean", CLEAN_STEPS, CLEAN_RATES, careless=0.0)
    train(model, corpus, "mixed", MIXED_STEPS, MIXED_RATES, careless=CARELESS_SHARE)
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    (output / "model.safetensors").chmod(0o644)
    print(f"in {output}, {time.process_time() - started:.0f} CPU-seconds")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    build(**vars(parser.parse_args()))
