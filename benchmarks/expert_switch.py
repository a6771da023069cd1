"""Switching experts in a colocated vLLM: rows of factored layers, a weight sync, and vLLM's own LoRA switching.

    python benchmarks/expert_switch.py [--device cuda] [--shape 8b] [--out results.json]

Three experts take turns on one base model: SVF vectors as rows of an engine that computes with the model's factors, or
merged and pushed into one with whole weights, and LoRA adapters of rank 16 in an engine with room for one of them at a
time, or for all. A switch is what the first token after it takes longer than without one; what is saved there costs
time at every token: tokens a second stand beside it. Each engine lives in a process of its own; rounds take turns.
"""

import os
import shutil
import statistics
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from common import MLP, SHAPES, arguments, decompose_once, hardware, random_llama, report, running, saved_model, seconds
from peft import LoraConfig, get_peft_model

EXPERTS, PROMPTS, TOKENS = 3, 8, 32
RANK = 16
PROMPT = [5, 6, 7, 8, 9, 10, 11, 12]


class SVFEngine:
    """Vectors on one model beside the engine; a switch is `set_adapter` and a sync, or, with `rows`, which share the
    model's factors, nothing."""

    def __init__(self, folder: str, shape: str, dtype: torch.dtype, device: str, rows: bool):
        from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator
        from svf_rl.generation.weights import SharedWeights, active_multipliers
        from svf_rl.svf import SVFConfig, svf_layers

        base = decompose_once(random_llama(SHAPES[shape].config(), dtype, device))
        self.model = get_peft_model(base, SVFConfig(target_modules=MLP), adapter_name="expert0")
        for k in range(1, EXPERTS):
            self.model.add_adapter(f"expert{k}", SVFConfig(target_modules=MLP))
        generator = torch.Generator().manual_seed(0)
        for layer in svf_layers(self.model).values():
            for vector in layer.svf_z.values():
                vector.weight.data += 0.05 * torch.randn(len(vector.weight), generator=generator).to(device)
        self.engine = ColocatedVLLMGenerator(
            f"{folder}/base", dtype=dtype, seed=0, device=device, max_model_len=256, max_num_seqs=PROMPTS,
            enforce_eager=True, shared=SharedWeights.of(self.model) if rows else None,
        )  # fmt: skip
        for k in range(EXPERTS if rows else 0):
            self.model.set_adapter(f"expert{k}", inference_mode=True)
            self.engine.adapters.put(1 + k, active_multipliers(self.model))

    def switch(self, expert: int) -> None:
        if self.engine.adapters is None:
            self.model.set_adapter(f"expert{expert}", inference_mode=True)
            self.engine.sync(self.model)

    def generate(self, expert: int, prompts: int, tokens: int) -> None:
        from svf_rl.generation import Sampling

        sampling = Sampling(max_tokens=tokens, temperature=0.0, logprobs=False, extra={"ignore_eos": True})
        numbers = {} if self.engine.adapters is None else {"adapters": [1 + expert] * prompts}
        self.engine.generate([PROMPT] * prompts, sampling, [0] * prompts, **numbers)


class LoRAEngine:
    """vLLM's own: the adapter is named with each request, a switch is what the engine does about it."""

    def __init__(self, folder: str, slots: int, dtype: torch.dtype, device: str):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM

        self.folder = folder
        self.llm = LLM(
            model=f"{folder}/base", dtype=str(dtype).removeprefix("torch."), max_model_len=256, max_num_seqs=PROMPTS,
            enforce_eager=True, enable_lora=True, max_loras=slots, max_cpu_loras=EXPERTS, max_lora_rank=RANK,
            enable_chunked_prefill=device != "cpu", max_num_batched_tokens=4096, gpu_memory_utilization=0.3,
        )  # fmt: skip

    def switch(self, expert: int) -> None:
        """Nothing to do: it happens with the next request."""

    def generate(self, expert: int, prompts: int, tokens: int) -> None:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        request = LoRARequest(f"expert{expert}", expert + 1, f"{self.folder}/lora{expert}")
        self.llm.reset_prefix_cache()
        self.llm.generate(
            [{"prompt_token_ids": PROMPT}] * prompts,
            SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True),
            lora_request=request,
            use_tqdm=False,
        )


def life(pipe: Connection, kind: str, folder: str, shape: str, dtype_name: str, device: str) -> None:
    """Answers each order with (seconds to the first token after a switch, without one, tokens a second)."""
    torch.set_num_threads(1)
    dtype = getattr(torch, dtype_name)
    slots = {"lora_one_slot": 1, "lora_all_slots": EXPERTS}
    engine: Any = (
        LoRAEngine(folder, slots[kind], dtype, device)
        if kind in slots
        else SVFEngine(folder, shape, dtype, device, rows=kind == "svf_rows")
    )
    for expert in range(EXPERTS):  # every adapter was read once, every kernel ran
        engine.switch(expert)
        engine.generate(expert, 1, 1)
    pipe.send("ready")
    expert = EXPERTS - 1
    while pipe.recv() is not None:
        expert = (expert + 1) % EXPERTS
        after = seconds(lambda: (engine.switch(expert), engine.generate(expert, 1, 1)))  # noqa: B023
        without = seconds(lambda: engine.generate(expert, 1, 1))  # noqa: B023
        many = seconds(lambda: engine.generate(expert, PROMPTS, TOKENS))  # noqa: B023
        pipe.send((after, without, PROMPTS * TOKENS / many))


def main() -> None:
    args = arguments(__doc__, __file__)
    dtype = "bfloat16" if args.device == "cuda" else "float32"
    os.environ["SVF_RL_CACHE"] = cache = tempfile.mkdtemp(prefix="svf-rl-benchmark-")
    folder = tempfile.mkdtemp(prefix="svf-rl-benchmark-")
    config = SHAPES[args.shape].config()
    saved_model(f"{folder}/base", config, getattr(torch, dtype))
    for k in range(EXPERTS):
        lora = LoraConfig(r=RANK, target_modules=MLP, init_lora_weights=False)
        torch.manual_seed(k)
        get_peft_model(random_llama(config, getattr(torch, dtype), "cpu"), lora).save_pretrained(f"{folder}/lora{k}")
    kinds = ["svf_rows", "svf", "lora_one_slot", "lora_all_slots"]
    rounds: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in kinds}
    with running(life, {kind: (kind, folder, args.shape, dtype, args.device) for kind in kinds}) as ask:
        for turn in range(args.repeats or 9):
            for kind in kinds[turn % len(kinds) :] + kinds[: turn % len(kinds)]:
                rounds[kind].append(ask[kind]("turn"))
    lora_bytes = (Path(folder) / "lora0/adapter_model.safetensors").stat().st_size
    shutil.rmtree(cache)
    shutil.rmtree(folder)

    switch = {kind: statistics.median(after - without for after, without, _ in rounds[kind]) for kind in kinds}
    rate = {kind: statistics.median(tokens for *_, tokens in rounds[kind]) for kind in kinds}
    relative = {
        kind: statistics.median(a[2] / b[2] for a, b in zip(rounds[kind], rounds["svf"], strict=True)) for kind in kinds
    }
    names = {
        "svf_rows": "SVF, a row each",
        "svf": "SVF, merged by a sync",
        "lora_one_slot": "vLLM's LoRA, one slot",
        "lora_all_slots": "vLLM's LoRA, all loaded",
    }
    svf_bytes = 4 * sum(min(s) for s in [(config.hidden_size, config.intermediate_size)] * 3) * config.num_hidden_layers
    rows = [
        {
            "experts": names[kind],
            "switch (s)": f"{switch[kind]:.3f}",
            "tokens/s": f"{rate[kind]:.0f}",
            "of merged": f"{relative[kind]:.2f}",
            "MB an expert": f"{(svf_bytes if kind.startswith('svf') else lora_bytes) / 1e6:.2f}",
        }
        for kind in kinds
    ]
    result = {
        "hardware": hardware(args.device), "shape": args.shape, "dtype": dtype, "rank": RANK, "prompts": PROMPTS,
        "tokens": TOKENS, "switch_seconds": switch, "tokens_a_second": rate, "tokens_relative_to_merged": relative,
        "rounds": rounds,
    }  # fmt: skip
    report(result, rows, args.out)


if __name__ == "__main__":
    main()
