"""What each of the processes of one vLLM finds; written as JSON, a file for each.

torchrun --nproc_per_node 2 tests/generation/shared_engine.py MODEL OUT_FOLDER
"""

import copy
import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from fakes import move
from peft import PeftModel, get_peft_model
from torch import distributed
from transformers import AutoModelForCausalLM, AutoTokenizer
from weight_check import expected_weights, wrong_weights

from svf_rl.errors import SVFError
from svf_rl.generation import Sampling
from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator
from svf_rl.quickstart import make_rows
from svf_rl.svf import SVFConfig

UPDATES = 3
FUSED_OF = {"qkv_proj": 3, "gate_up_proj": 2}


def shard(name: str, weight: torch.Tensor, rank: int) -> torch.Tensor:
    """The half of a weight that this process's vLLM must hold: outputs of the first layers of a block, inputs of the
    last."""
    kind = name.split(".")[-2]
    if kind in FUSED_OF:
        return torch.cat([part.chunk(2)[rank] for part in weight.chunk(FUSED_OF[kind])])
    if kind in ("o_proj", "down_proj"):
        return weight.chunk(2, dim=1)[rank]
    return weight.chunk(2)[rank] if kind == "embed_tokens" else weight


@torch.no_grad()
def log_probabilities(model: torch.nn.Module, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """`(T, V)`, those from which the tokens of `completion` were drawn."""
    return model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)


def compare(engine: ColocatedVLLMGenerator, model: PeftModel, prompts: list[list[int]]) -> dict[str, Any]:
    """How this process's answers differ from those of a merged model."""
    merged = copy.deepcopy(model).merge_and_unload()
    completions = engine.generate(prompts, Sampling(24, temperature=0.0), range(len(prompts)))
    scores = engine.loglikelihood(prompts, [c.token_ids for c in completions])
    found = {"other tokens": 0, "near ties": 0, "tokens": 0, "log p": 0.0}
    for prompt, completion, likelihood in zip(prompts, completions, scores, strict=True):
        logps, chosen = log_probabilities(merged, prompt, completion.token_ids), torch.tensor(completion.token_ids)
        best, second = logps.topk(2, dim=1).values.T
        clear = best - second > 1e-3
        found["tokens"] += len(chosen)
        found["near ties"] += int((~clear).sum())
        found["other tokens"] += int((logps.argmax(1) != chosen)[clear].sum())
        expected = logps.gather(1, chosen[:, None])[:, 0]
        found["log p"] = max(found["log p"], (expected - torch.tensor(likelihood)).abs().max().item())
    return found


def recorded(engine: ColocatedVLLMGenerator) -> list[Any]:
    """From now on, vLLM's answers to the prompts of both processes, call by call."""
    calls: list[Any] = []
    generate = engine.llm.generate

    def remembered(*args: Any, **kwargs: Any) -> Any:
        calls.append(generate(*args, **kwargs))
        return calls[-1]

    engine.llm.generate = remembered  # type: ignore[method-assign]
    return calls


def main(path: str, out: Path) -> None:
    state = PartialState(cpu=True)
    rank = state.process_index
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
        SVFConfig(target_modules="mlp+attention", task_type="CAUSAL_LM"),
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    chats = [[{"role": "user", "content": row["prompt"]}] for row in make_rows("math", "test", 12)]
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]
    own = prompts[:5] if rank == 0 else prompts[5:]
    engine = ColocatedVLLMGenerator(
        path, dtype=torch.float32, seed=0, device="cpu", max_model_len=256, max_num_seqs=64, enforce_eager=True,
        tensor_parallel_size=2,
    )  # fmt: skip
    seen = recorded(engine)
    report: dict[str, Any] = {"wrong weights": [], "updates": []}
    for update in range(UPDATES):
        move(model, seed=update, by=0.02)
        engine.sync(model, everything=update == 0)
        expected = {name: shard(name, weight, rank) for name, weight in expected_weights(model).items()}
        report["wrong weights"] += wrong_weights(engine, expected)
        report["updates"].append(compare(engine, model, own))
    engine.generate(own, Sampling(24), [100 * rank + i for i in range(len(own))])
    sampled = [(list(output.outputs[0].token_ids), str(output.outputs[0].logprobs)) for output in seen[-1]]
    report["sampled alike"] = all(other == sampled for other in gather_object([sampled]))
    report["sampled"] = len(sampled)
    try:
        engine.generate([[5] * 300] if rank == 1 else own, Sampling(4), [0] * (1 if rank == 1 else len(own)))
    except SVFError as error:
        report["error"] = str(error)

    del engine, seen
    gc.collect()
    ones = torch.ones(1)
    distributed.all_reduce(ones)  # what the launcher made outlives the engine
    report["processes after the end"] = int(ones)
    (out / f"{rank}.json").write_text(json.dumps(report))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
