"""Rebuilds the bundled model: `python -m svf_rl.quickstart.build_model --output DIR --seed 0`.

A Llama of 0.4 million parameters learns three skills from right completions, then from a mixture in which a share of
the completions follows each skill's careless habit. Greedy decoding then follows the habit, which is right on about
half of the problems, while sampling often shows the skill: this is what reinforcement learning can bring out. It is
elicitation of what the model knows, not learning of something new.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from svf_rl.quickstart.corpus import IGNORE, SYSTEM_PROMPTS, Batch, Corpus
from svf_rl.quickstart.dispatch_skill import DISPATCH, DISPATCH_PROMPT
from svf_rl.quickstart.muon import Muon
from svf_rl.quickstart.skills import SKILLS, WORDINGS, make_examples
from svf_rl.quickstart.tokenizer import train_tokenizer

VOCABULARY = 448
CLEAN_STEPS, MIXED_STEPS = 2450, 270
CARELESS_SHARE = 0.58
ROWS = 48
# Every LONG_EVERY steps, one batch of few long conversations: it trains positions up to about 1,000.
LONG_EVERY, LONG_ROWS, LONG_TURNS = 25, 3, 16
# Learning rates of (the matrices by Muon, the rest by Adam).
CLEAN_RATES, MIXED_RATES = (0.02, 4e-3), (0.005, 1e-3)
MAX_NEW_TOKENS = 40


def model_config(tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """Llama's architecture, small; the head dimension of 32 is one that vLLM's CPU attention knows."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def corpus_texts() -> list[str]:
    """What the tokenizer's merges are learnt from."""
    texts = [*SYSTEM_PROMPTS, DISPATCH_PROMPT]
    for skill, count in {**dict.fromkeys(SKILLS, 3000), DISPATCH: 400}.items():
        for example in make_examples(skill, "train", count):
            texts += [example.prompt, example.completion]
    return texts


def batch_loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Cross-entropy (scalar), summed over the assistant's tokens; logits are computed only for those."""
    input_ids, labels = batch
    hidden = model.model(input_ids).last_hidden_state[:, :-1]  # (rows, length - 1, hidden)
    target = labels[:, 1:]
    learnt = target != IGNORE
    return cross_entropy(model.lm_head(hidden[learnt]), target[learnt], reduction="sum")


def train(
    model: LlamaForCausalLM, corpus: Corpus, name: str, steps: int, rates: tuple[float, float], careless: float
) -> None:
    """`steps` updates: a short warm-up to `rates`, then down to zero on a cosine."""
    inner = [p for p in model.model.layers.parameters() if p.dim() == 2]
    outer = [p for p in model.parameters() if not any(p is other for other in inner)]
    optimizers = [Muon(inner, lr=rates[0]), torch.optim.AdamW(outer, lr=rates[1], betas=(0.9, 0.98), weight_decay=0.0)]
    warm_up = steps // 20
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / steps))
        )
        for optimizer in optimizers
    ]
    model.train()
    bar = tqdm(range(steps), desc=name, mininterval=1.0)
    for step in bar:
        if step % LONG_EVERY == LONG_EVERY - 1:
            parts = corpus.batch(LONG_ROWS, LONG_TURNS, careless, parts=1)
        else:
            parts = corpus.batch(ROWS, 1, careless, parts=6)
        tokens = sum(int((labels != IGNORE).sum()) for _, labels in parts)
        model.zero_grad()
        total = 0.0
        for part in parts:
            loss = batch_loss(model, part) / tokens
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{total:.3f}")


@torch.inference_mode()
def greedy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, prompts: list[str], system: str | None = None
) -> list[str]:
    """Greedy completions of user turns, as text without special tokens. Prompts are padded on the left."""
    head = [{"role": "system", "content": system}] if system else []
    conversations = [[*head, {"role": "user", "content": prompt}] for prompt in prompts]
    model.eval()
    completions: list[str] = []
    for start in range(0, len(conversations), 128):
        inputs = tokenizer.apply_chat_template(
            conversations[start : start + 128],
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
            tokenizer_kwargs={"padding_side": "left", "return_token_type_ids": False},
        )
        output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        completions += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return completions


def report(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, wording: str, items: int = 256) -> None:
    """Prints held-out greedy accuracy: the share of right answers, and of completions spelt as the habit's."""
    for skill in (*SKILLS, DISPATCH):
        examples = make_examples(skill, "test", items, seed=1, wording=wording)
        system = DISPATCH_PROMPT if skill == DISPATCH else None
        written = greedy(model, tokenizer, [example.prompt for example in examples], system)
        right = sum(text.endswith(example.ending) for text, example in zip(written, examples, strict=True))
        habit = sum(text == example.careless for text, example in zip(written, examples, strict=True))
        print(f"{wording:9s} {skill:8s} accuracy {right / items:.3f}  as the habit {habit / items:.3f}")


def build(output: Path, seed: int) -> None:
    """Trains and saves model, tokenizer, chat template and generation config into `output`."""
    started = time.process_time()
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # more threads change the order of sums and with it the weights
    tokenizer = train_tokenizer(corpus_texts(), VOCABULARY)
    model = LlamaForCausalLM(model_config(tokenizer))
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    corpus = Corpus(tokenizer, seed)
    train(model, corpus, "clean", CLEAN_STEPS, CLEAN_RATES, careless=0.0)
    train(model, corpus, "mixed", MIXED_STEPS, MIXED_RATES, careless=CARELESS_SHARE)
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    model.float()  # the rounded weights, in the arithmetic that every CPU does fast
    for wording in WORDINGS:
        report(model, tokenizer, wording)
    (output / "model.safetensors").chmod(0o644)
    size = sum(file.stat().st_size for file in output.iterdir())
    print(f"{size / 1e6:.2f} MB in {output}, {time.process_time() - started:.0f} CPU-seconds")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    build(**vars(parser.parse_args()))
