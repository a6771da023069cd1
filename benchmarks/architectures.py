"""Which architectures are trained right: rollouts of transformers and of vLLM, a server's update, and a merge.

    python benchmarks/architectures.py [--only qwen3_moe gpt_oss] [--out results.json]

For each architecture a tiny random model is written to a folder and adapted, its trained values moved away from their
start. Each cell is the largest difference of a token's log-probability from those of the adapted model's own logits,
over greedy tokens, or why it is refused. An architecture has a process of its own, since an engine may end it.
"""

import argparse
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from common import hardware, report
from datasets import Dataset
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from svf_rl.errors import SVFError, one_line
from svf_rl.experts.merged import merge
from svf_rl.generation import Completion, CompletionGenerator, Sampling
from svf_rl.generation.server.served_weights import ServedWeights
from svf_rl.generation.server.z_update import describe_layout, pack
from svf_rl.generation.transformers_generator import TransformersGenerator
from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator
from svf_rl.generation.weights import SharedWeights
from svf_rl.models.arguments import ModelArguments
from svf_rl.quickstart import model_path
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.svf import SVFConfig
from svf_rl.training.policy import PolicyLoss
from svf_rl.training.start_check import check_start
from svf_rl.training.trainer import SVFReinforceTrainer

# Sizes by the names that configurations give them; a head has 32 numbers, the least that vLLM takes on the CPU.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim"), 96),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 2),
    "num_key_value_heads": 1, "head_dim": 32, "rotary_dim": 16, "vocab_size": 448, "sliding_window": 16,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 128),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32), "num_experts_per_tok": 2,
    "n_group": 1, "topk_group": 1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.1,
}  # fmt: skip
MLA = {"num_key_value_heads": 2, "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 32,
       "qk_rope_head_dim": 64, "v_head_dim": 32, "head_dim": 64, "first_k_dense_replace": 1}  # fmt: skip
# What else an architecture needs; its SVF targets are `mlp+attention`, or those named here.
DENSE: dict[str, dict[str, Any]] = {
    "llama": {}, "mistral": {}, "ministral": {}, "qwen2": {}, "qwen3": {}, "gemma": {}, "gemma2": {},
    "gemma3_text": {}, "phi": {"num_key_value_heads": 2, "intermediate_size": 256}, "phi3": {}, "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neox": {}, "gptj": {}, "opt": {}, "falcon": {}, "bloom": {}, "mpt": {}, "starcoder2": {},
    "smollm3": {"max_position_embeddings": 8192},
    "olmo": {}, "olmo2": {}, "olmo3": {}, "cohere": {}, "cohere2": {}, "granite": {}, "glm": {}, "glm4": {},
    "stablelm": {}, "nemotron": {}, "exaone4": {}, "ernie4_5": {}, "seed_oss": {}, "arcee": {}, "apertus": {},
    "helium": {}, "persimmon": {}, "hunyuan_v1_dense": {}, "vaultgemma": {}, "nanochat": {},
    "modernbert-decoder": {},
}  # fmt: skip
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {}, "qwen2_moe": {}, "qwen3_moe": {}, "olmoe": {}, "granitemoe": {}, "gpt_oss": {}, "ernie4_5_moe": {},
    "phimoe": {}, "flex_olmo": {}, "hunyuan_v1_moe": {}, "jetmoe": {}, "glm4_moe": {"head_dim": 32},
    "minimax_m2": {"rotary_dim": 16, "scoring_func": "sigmoid", "use_routing_bias": True},
    "dots1": {"num_key_value_heads": 2, "n_shared_experts": 1},
    "llama4_text": {"num_experts_per_tok": 1}, "deepseek_v2": MLA, "deepseek_v3": {**MLA, "topk_method": "noaux_tc"},
}  # fmt: skip
TARGETS = {
    "opt": r".*\.(fc1|fc2|q_proj|v_proj)", "gptj": r".*\.(fc_in|fc_out|q_proj|v_proj)",
    "mpt": r".*\.(Wqkv|up_proj|down_proj)", "modernbert-decoder": r".*\.(Wi|Wo|q_proj|v_proj)",
    "deepseek_v2": r".*\.self_attn\.(q_proj|o_proj)", "deepseek_v3": r".*\.self_attn\.(q_proj|o_proj)",
    "jetmoe": r".*\.kv_proj",
}  # fmt: skip
CELLS = ("loss", "transformers", "colocated", "factored", "server", "merge")
TOKENS, SEED = 12, 0


def build(name: str, folder: Path) -> None:
    """Write a random model of the architecture, with the tokenizer of the bundled one."""
    known = AutoConfig.for_model(name).to_dict() | dict.fromkeys(AutoConfig.for_model(name).attribute_map)
    common = {key: value for key, value in SIZES.items() if key in known}
    config = AutoConfig.for_model(name, **{**common, **DENSE.get(name, {}), **MIXTURES.get(name, {})})
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):  # 0 at first: a lost one would not show
                nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_path()).save_pretrained(folder)


def adapted(name: str, folder: Path) -> PeftModel:
    """The model with an SVF adapter whose values have moved."""
    targets = TARGETS.get(name, "attention" if name in MIXTURES else "mlp+attention")
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = get_peft_model(base, SVFConfig(target_modules=targets, task_type="CAUSAL_LM")).eval()
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(SEED)
    return [torch.randint(5, 448, (length,), generator=generator).tolist() for length in (40, 7, 23)]


@torch.no_grad()
def logps(model: Any, prompt: list[int], completion: list[int]) -> Tensor:
    """`(T, V)`, by the model's own logits, without padding or cache."""
    return model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)


def difference(generator: CompletionGenerator, model: Any) -> float:
    """
    The largest difference between what a generator says of its greedy tokens and of given ones and what `model` says,
    in nats; a greedy token that is not the likeliest counts by how much likelier that one is.
    """
    asked = prompts()
    completions = generator.generate(asked, Sampling(TOKENS, temperature=0.0), [SEED] * len(asked))
    scores = generator.loglikelihood(asked, [prompt[::-1][:TOKENS] for prompt in asked])
    worst = 0.0
    for prompt, completion, score in zip(asked, completions, scores, strict=True):
        worst = max(worst, _of_greedy(model, prompt, completion))
        given = prompt[::-1][:TOKENS]
        own = logps(model, prompt, given).gather(1, torch.tensor(given)[:, None])[:, 0]
        worst = max(worst, (own - torch.tensor(score)).abs().max().item())
    return worst


def _of_greedy(model: Any, prompt: list[int], completion: Completion) -> float:
    own = logps(model, prompt, completion.token_ids)
    chosen = own.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
    gap = (own.max(1).values - chosen).max().item()
    if completion.logprobs is None:
        return gap
    return max(gap, (chosen - torch.tensor(completion.logprobs)).abs().max().item())


def cells(name: str, folder: Path) -> dict[str, float | str]:
    """Each cell of an architecture: a difference, or the line of a refusal."""
    base = folder / "base"
    build(name, base)
    model = adapted(name, base)
    found: dict[str, float | str] = {}

    def refused(error: SVFError) -> str:
        return one_line(f"refused: {error}".replace(str(base), "MODEL"), 240)

    def cell(which: str, measure: Callable[[], float]) -> None:
        try:
            found[which] = measure()
        except SVFError as error:
            found[which] = refused(error)
        except Exception as error:  # noqa: BLE001  (a traceback is a result here)
            found[which] = f"FAILS: {type(error).__name__}: {one_line(error, 200)}"

    def loss() -> float:
        start_training()
        return of_loss(trainer[0].loss, model)

    def start_training() -> None:
        """With the check at the start of a run, of which the one with vLLM follows."""
        trainer.append(
            SVFReinforceTrainer(
                model, lambda completions, **_: [0.0] * len(completions),
                SVFReinforceConfig(str(folder / "run"), use_vllm=False, use_cpu=True, report_to="none", bf16=False),
                Dataset.from_list([{"prompt": f"{i} " * i} for i in range(5, 21)]),
                processing_class=AutoTokenizer.from_pretrained(base, padding_side="left"),
            )
        )  # fmt: skip

    def transformers() -> float:
        return difference(TransformersGenerator(model, eos_token_ids=[2], pad_token_id=0), model)

    def merged() -> float:
        model.save_pretrained(folder / "adapter")
        merge(ModelArguments(str(base)), [str(folder / "adapter")], folder / "merged")
        plain = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32).eval()
        return max((logps(plain, p, p[:TOKENS]) - logps(model, p, p[:TOKENS])).abs().max().item() for p in prompts())

    def colocated() -> float:
        """With the adapter, and as the base model again."""
        if trainer:
            trainer[0].generator, trainer[0].args.use_vllm = engine, True
            check_start(trainer[0], ask_generator=True)
        engine.sync(model)
        adapted_ = difference(engine, model)
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval().requires_grad_(False)
        engine.sync(plain, everything=True)
        return max(adapted_, difference(engine, plain))

    def factored() -> float:
        """With the model's own factors."""
        engine = start(base, SharedWeights.of(model))
        engine.sync(model)
        return difference(engine, model)

    def served() -> float:
        """The code that a server's worker runs, on the weights of this engine."""
        layout, z = describe_layout(model), pack(model)
        worker = ServedWeights(engine.model, str(base), None, torch.float32)
        worker.set_up(layout)
        worker.update(layout.version(z), z)
        return difference(engine, model)

    trainer: list[SVFReinforceTrainer] = []
    cell("merge", merged)
    cell("loss", loss)
    cell("transformers", transformers)
    try:
        engine = start(base)
    except SVFError as error:
        found |= dict.fromkeys(("colocated", "factored", "server"), refused(error))
    else:
        cell("colocated", colocated)
        if isinstance(found["colocated"], str):
            found["server"] = found["factored"] = found["colocated"]
        else:
            cell("server", served)
            cell("factored", factored)
    return {name: found[name] for name in CELLS}


def of_loss(loss: PolicyLoss, model: Any) -> float:
    """The largest difference of what the loss computes for given tokens, padded, from the model's own."""
    asked, given = prompts(), [prompt[::-1][:TOKENS] for prompt in prompts()]
    longest = max(map(len, asked))
    batch = {
        "prompt_ids": torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in asked]),
        "prompt_mask": torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in asked]),
        "completion_ids": torch.tensor([ids + [0] * (TOKENS - len(ids)) for ids in given]),
        "completion_mask": torch.tensor([[1] * len(ids) + [0] * (TOKENS - len(ids)) for ids in given]),
    }
    with torch.no_grad():
        ours = loss.statistics(model, batch, with_reference=False).logps
    own = [
        logps(model, prompt, ids).gather(1, torch.tensor(ids)[:, None])[:, 0]
        for prompt, ids in zip(asked, given, strict=True)
    ]
    return (ours - torch.cat(own)).abs().max().item()


def start(folder: Path, shared: SharedWeights | None = None) -> ColocatedVLLMGenerator:
    return ColocatedVLLMGenerator(
        str(folder), dtype=torch.float32, seed=SEED, device="cpu", max_num_seqs=8, enforce_eager=True, shared=shared
    )


def alone(name: str, answer: Connection) -> None:
    """The cells of an architecture, in a process of its own: an engine may end it."""
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SVF_RL_CACHE"] = f"{folder}/factors"
        answer.send(cells(name, Path(folder)))
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[*DENSE, *MIXTURES], help="names of transformers' model types")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "architectures.json")
    given = parser.parse_args()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import_module("vllm").LLM  # noqa: B018  (once: each process is a fork of this one)
    context = get_context("fork")
    result: dict[str, Any] = {"hardware": hardware("cpu"), "architectures": {}}
    if given.out.exists():
        result["architectures"] = json.loads(given.out.read_text())["architectures"]
    for name in given.only:
        answer, other = context.Pipe(duplex=False)
        process = context.Process(target=alone, args=(name, other))
        process.start()
        other.close()
        try:
            found = answer.recv()
        except EOFError:
            found = dict.fromkeys(CELLS, "FAILS: the process ended")
        process.join()
        result["architectures"][name] = found
        print(name, found, flush=True)
    order = [*DENSE, *MIXTURES]
    result["architectures"] = dict(sorted(result["architectures"].items(), key=lambda item: order.index(item[0])))
    rows = [
        {"architecture": name, **{cell: _show(found[cell]) for cell in CELLS}}
        for name, found in result["architectures"].items()
    ]
    report(result, rows, given.out)


def _show(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.0e}"


if __name__ == "__main__":
    main()
