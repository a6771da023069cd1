"""Processor seconds of one update by its rows: padded, or packed as `train_packing` says.

    python benchmarks/packing.py [--device cuda] [--shape 8b] [--out results.json]

An update is the policy's forward pass, the REINFORCE loss, the backward pass and a step of Adam, on 8 sequences in one
micro-batch: prompts of 192 tokens and completions of 32, or of any length up to that. The ways take turns, one update
each; ratios are medians over rounds of what each takes in units of padded rows (seconds on a GPU).
"""

import os
import random
import shutil
import statistics
import tempfile
import time
from functools import partial
from typing import Any

import torch
from common import SHAPES, arguments, decompose_once, hardware, interleaved, random_llama, ratio, report, seconds
from peft import get_peft_model
from torch import Tensor

from svf_rl.losses.objective import reinforce_loss
from svf_rl.losses.token_logprobs import LogitTransform, token_statistics
from svf_rl.svf import SVFConfig
from svf_rl.training.policy import add_hidden_states_forward, arrange, output_layer

SEQUENCES, PROMPT, COMPLETION = 8, 192, 32
MODES = ("none", "padding_free", "prompt")
CASES = {
    "8 completions a prompt": (8, False, 0),
    "1 completion a prompt": (1, False, 0),
    "8 a prompt, any length": (8, True, 0),
    "1 a prompt, any length": (1, True, 0),
    "2 a prompt, 128 tokens of all prompts the same": (2, False, 128),
}
"""Completions a prompt, whether of any length, and how many tokens all prompts begin with."""


def made_batch(generations: int, any_length: bool, beginning: int, vocabulary: int, device: str) -> dict[str, Tensor]:
    """As the trainer makes it; lengths are uniform from an eighth of the longest."""
    draw = random.Random(0)
    batch = {f"{part}_{what}": [] for part in ("prompt", "completion") for what in ("ids", "mask")}
    generator = torch.Generator().manual_seed(0)
    for row in range(SEQUENCES):
        for part, longest in (("prompt", PROMPT), ("completion", COMPLETION)):
            if part == "prompt" and row % generations:
                for what in ("ids", "mask"):
                    batch[f"prompt_{what}"].append(batch[f"prompt_{what}"][-1])
                continue
            length = draw.randint(longest // 8, longest) if any_length else longest
            mask = torch.arange(longest) < length
            batch[f"{part}_mask"].append((mask.flip(0) if part == "prompt" else mask).long())
            ids = torch.randint(vocabulary, (longest,), generator=generator)
            if part == "prompt":
                ids[:beginning] = torch.arange(beginning)
            batch[f"{part}_ids"].append(ids)
    return {name: torch.stack(rows).to(device) for name, rows in batch.items()}


def main() -> None:
    args = arguments(__doc__, __file__)
    repeats, shape = args.repeats or 5, SHAPES[args.shape]
    os.environ["SVF_RL_CACHE"] = cache = tempfile.mkdtemp(prefix="svf-rl-benchmark-")
    base = random_llama(shape.config(), torch.float32 if args.device == "cpu" else torch.bfloat16, args.device)
    add_hidden_states_forward(decompose_once(base))
    model = get_peft_model(base, SVFConfig(task_type="CAUSAL_LM"))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def update(mode: str, batch: dict[str, Tensor]) -> None:
        mask = batch["completion_mask"]
        labels = batch["completion_ids"][mask.bool()]
        hidden = arrange(batch, mode, model)(model)
        logps = token_statistics(hidden, labels, *output_layer(model), LogitTransform()).logps
        logps = logps.new_zeros(mask.shape).masked_scatter(mask.bool(), logps)
        advantages = torch.linspace(-1, 1, len(mask), device=mask.device)
        reinforce_loss(logps, advantages, mask, None, None, 0.0, "sum", len(mask)).backward()
        optimizer.step()
        optimizer.zero_grad()

    rows: list[dict[str, str]] = []
    result: dict[str, Any] = {"hardware": hardware(args.device), "shape": args.shape, "repeats": repeats}
    result |= {"sequences": SEQUENCES, "load": os.getloadavg()[0], "cases": []}
    for name, (generations, any_length, beginning) in CASES.items():
        batch = made_batch(generations, any_length, beginning, shape.vocabulary, args.device)
        used: dict[str, list[float]] = {mode: [] for mode in MODES}

        def timed(mode: str, batch: dict[str, Tensor] = batch, used: dict[str, list[float]] = used) -> None:
            start = time.process_time()
            elapsed = seconds(partial(update, mode, batch))
            used[mode].append(elapsed if args.device == "cuda" else time.process_time() - start)

        interleaved({mode: partial(timed, mode) for mode in MODES}, repeats)
        counted = {mode: values[1:] for mode, values in used.items()}  # one round warms up
        ratios = {mode: ratio(counted, mode, "none") for mode in MODES[1:]}
        medians = {mode: statistics.median(values) for mode, values in counted.items()}
        result["cases"].append({"case": name, "seconds": medians, "ratios": ratios})
        rows.append(
            {"update": name, "padded (s)": f"{medians['none']:.2f}"}
            | {mode: f"{value:.2f}" for mode, value in ratios.items()}
        )
    shutil.rmtree(cache)
    report(result, rows, args.out)


if __name__ == "__main__":
    main()
