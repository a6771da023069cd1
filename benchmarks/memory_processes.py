"""The peak memory of each of two processes against what `svf-rl plan` says of it, under DDP and ZeRO-3.

    python benchmarks/memory_processes.py [--out results.json]

Models of two depths are trained for three updates through `accelerate launch` (`accelerate_configs/cpu_*.yaml`):
DeepSpeed gathers ahead from the second one on. Completions of a fixed length take the place of rollouts. As in
`memory_plan.py`, what libraries take is the same for both depths, so that differences are compared: of the most memory
that a process has for itself, and of the plans. (The smaller model must not be too small: its update would need less
than the 250 MiB at a time in which DDP hands the weights round at the start.) Of ZeRO-3 the plan is a bound, since all
weights of such models may be gathered at one time.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from common import MLP, SHAPES, arguments, decompose_once, hardware, peak_memory, random_llama, report, resident
from datasets import Dataset
from memory_plan import BATCH, WholeCompletions
from transformers import AutoModelForCausalLM, AutoTokenizer

from svf_rl.memory.plan import Machine, MemoryPlan
from svf_rl.quickstart import model_path
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.settings.recipe import load_recipe
from svf_rl.svf import SVFConfig
from svf_rl.svf.sharding import is_sharded
from svf_rl.training.run_context import leave_process_group
from svf_rl.training.trainer import SVFReinforceTrainer

REPOSITORY = Path(__file__).resolve().parent.parent
LAYERS = (8, 16)
CONFIGS = {"DDP": ("cpu_ddp", 0), "ZeRO-3": ("cpu_zero3", 3)}


def of_one_process(folder: Path, out: Path) -> None:
    """A process's life: load its share of the model, then one update; its peak in bytes goes into a file."""
    sharded = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    args = SVFReinforceConfig(
        output_dir=str(out / "run"), save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no",
        gradient_checkpointing=False, use_cpu=not sharded, ddp_backend="gloo" if sharded else None,
        **(BATCH | {"max_steps": 3}),
    )  # fmt: skip
    generator = WholeCompletions()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for parameter in model.parameters():
        if not is_sharded(parameter):
            parameter.data = parameter.data.clone()  # in memory as on a GPU, not pages of a file that come and go
    trainer = SVFReinforceTrainer(
        model,
        lambda completions, **_: [float(i % 2) for i in range(len(completions))],
        args,
        Dataset.from_list([{"prompt": " ".join(["How many?"] * (2 + i))} for i in range(8)]),
        processing_class=AutoTokenizer.from_pretrained(str(model_path()), padding_side="left"),
        peft_config=SVFConfig(target_modules=MLP, task_type="CAUSAL_LM"),
        generator=generator,
    )
    with peak_memory("cpu") as peak:
        start = resident()
        trainer.train()
        found = {"bytes": start + peak(), "prompt": generator.longest_prompt}
    (out / f"{args.process_index}.json").write_text(json.dumps(found))
    leave_process_group()


def measured(config: str, folder: Path, out: Path) -> tuple[list[int], int]:
    """The peaks of both processes, and the tokens of the longest prompt."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--main_process_port", "0"),
        *("--config_file", f"accelerate_configs/{config}.yaml", __file__, "--process", str(folder), str(out)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found = [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]
    return [one["bytes"] for one in found], max(one["prompt"] for one in found)


def planned(folder: Path, stage: int, prompt: int) -> int:
    """Bytes that the plan gives one of two GPUs at the peak of an update, the allowance for CUDA apart."""
    values = {
        "model_name_or_path": str(folder), "dtype": "float32", "task": "quickstart", "use_vllm": stage == 3,
        "gradient_checkpointing": False, **BATCH,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    plan = MemoryPlan(load_recipe(folder / "recipe.yaml", gpus=2), Machine(2, 1, 10**12), stage, prompt)
    each = plan.gpu(plan.run)
    assert each.activations is not None
    return sum(each.held.values()) + each.buckets + each.gathered + each.activations


def main() -> None:
    args = arguments(__doc__, __file__)
    # Large blocks straight from the system, so that a freed tensor leaves the resident set at once.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = os.environ["MALLOC_TRIM_THRESHOLD_"] = str(1 << 20)
    folder = Path(tempfile.mkdtemp(prefix="svf-rl-benchmark-"))
    os.environ |= {"SVF_RL_CACHE": str(folder / "factors"), "TORCH_EXTENSIONS_DIR": str(folder / "extensions")}
    rows, result = [], {"hardware": hardware("cpu"), "layers": LAYERS, "peaks": {}, "pairs": {}}
    try:
        for layers in LAYERS:
            model = decompose_once(random_llama(SHAPES["small"].config(layers), torch.float32, "cpu"))
            model.save_pretrained(folder / str(layers))
            del model
        for name, (config, stage) in CONFIGS.items():
            peaks, plans = [], []
            for layers in LAYERS:
                found, prompt = measured(config, folder / str(layers), folder / "out")
                peaks.append(found)
                plans.append(planned(folder / str(layers), stage, prompt))
                print(name, layers, found, plans[-1], flush=True)
            difference = max(peaks[1]) - max(peaks[0])
            said = plans[1] - plans[0]
            result["peaks"][name] = peaks
            result["pairs"][name] = {"measured_bytes": difference, "planned_bytes": said, "ratio": said / difference}
            rows.append(
                {
                    "two processes": f"{name}, {LAYERS[1]} − {LAYERS[0]} layers",
                    "measured a process (MiB)": f"{difference / 2**20:.0f}",
                    "planned (MiB)": f"{said / 2**20:.0f}",
                    "planned / measured": f"{said / difference:.3f}",
                }
            )
    finally:
        shutil.rmtree(folder)
    report(result, rows, args.out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--process"]:
        of_one_process(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
