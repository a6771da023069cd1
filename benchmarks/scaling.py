"""What grows with processes, and what with the batch.

    python benchmarks/scaling.py [--out results.json]

Processes: the same run, of the same updates on as many prompts together, by `accelerate launch` with one process, and
with two under DDP, ZeRO-2 and ZeRO-3 (`accelerate_configs/cpu*.yaml`), each process with one thread and a vLLM of its
own. From the run's own `metrics.jsonl`: where the seconds of an update go. From outside: the peak of the memory that a
process has for itself while it trains, mapped files apart. Batch: tokens a second of one engine against the number of
sequences that it is asked for together. (The weight sync against the number of layers: `weight_sync.py`.)
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from common import SHAPES, arguments, hardware, interleaved, report, running, saved_model

from svf_rl.generation.sampling import Sampling
from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator

REPOSITORY = Path(__file__).resolve().parent.parent
LAYERS, UPDATES, SEQUENCES = 4, 5, 16
CONFIGS = {"1 process": "cpu", "2, DDP": "cpu_ddp", "2, ZeRO-2": "cpu_zero2", "2, ZeRO-3": "cpu_zero3"}
PHASES = ("rollout", "reward", "sync", "update")
BATCHES, PROMPT, COMPLETION = (1, 4, 16, 64, 256), 32, 32


def run(config: str, folder: Path) -> dict[str, Any]:
    """Train; medians of the seconds by phase over all updates but the first, and the peak of each process in bytes."""
    output, processes = folder / "run", 1 if config == "cpu" else 2
    keys = {
        "model_name_or_path": folder / "model", "output_dir": output, "max_steps": UPDATES, "eval_strategy": "no",
        "per_device_train_batch_size": SEQUENCES // processes, "save_strategy": "no", "validation_items": 8,
        "test_items": 8, "train_items": 256, "logging_steps": 1, "report_to": "none", "max_completion_length": 48,
    }  # fmt: skip
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--main_process_port", "0"),
        *("--config_file", f"accelerate_configs/{config}.yaml", "svf_rl/train.py", "recipes/quickstart.yaml"),
        *(word for key, value in keys.items() for word in (f"--{key}", str(value))),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    shutil.rmtree(output, ignore_errors=True)
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)
        peaks = _peaks_while_training(process, output / "metrics.jsonl")
        if process.wait():
            log.seek(0)
            raise SystemExit(log.read()[-3000:])
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if "time/update" in line][1:]
    return {
        "seconds": {phase: statistics.median(line[f"time/{phase}"] for line in updates) for phase in PHASES},
        "peak_bytes": sorted(peaks.values(), reverse=True)[:processes],
    }


def _peaks_while_training(launcher: subprocess.Popen[bytes], metrics: Path) -> dict[int, int]:
    """By process id: the most memory, mapped files apart, from the first logged update until the launcher ends."""
    peaks: dict[int, int] = {}
    ended = threading.Event()
    while launcher.poll() is None:
        ended.wait(0.1)
        if not metrics.exists() or '"time/update"' not in metrics.read_text():
            continue
        for child in _descendants(launcher.pid):
            peaks[child] = max(peaks.get(child, 0), _own_memory(child))
    return peaks


def _descendants(parent: int) -> list[int]:
    found, waiting = [], [parent]
    while waiting:
        try:
            children = Path(f"/proc/{(pid := waiting.pop())}/task/{pid}/children").read_text().split()
        except OSError:
            continue  # it has ended
        found += map(int, children)
        waiting += map(int, children)
    return found


def _own_memory(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssShmem")))


def engine(pipe: Connection, folder: str) -> None:
    """A process's life: an engine that generates once an order, which is the number of sequences."""
    vllm = ColocatedVLLMGenerator(
        folder, dtype=torch.float32, seed=0, device="cpu", max_model_len=128, max_num_seqs=max(BATCHES),
        enforce_eager=True,
    )  # fmt: skip
    prompts = torch.randint(5, 400, (max(BATCHES), PROMPT), generator=torch.Generator().manual_seed(1)).tolist()
    sampling = Sampling(max_tokens=COMPLETION, extra={"ignore_eos": True})
    pipe.send("ready")
    while (count := pipe.recv()) is not None:
        pipe.send(sum(len(c.token_ids) for c in vllm.generate(prompts[:count], sampling, range(count))))


def main() -> None:
    args = arguments(__doc__, __file__)
    rounds = args.repeats or 2
    folder = Path(tempfile.mkdtemp(prefix="svf-rl-benchmark-"))
    os.environ |= {"SVF_RL_CACHE": str(folder / "factors"), "TORCH_EXTENSIONS_DIR": str(folder / "extensions")}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONFIGS}
    try:
        saved_model(str(folder / "model"), SHAPES["small"].config(LAYERS), torch.float32)
        for _ in range(rounds):
            for name, config in CONFIGS.items():
                runs[name].append(run(config, folder))
                print(name, runs[name][-1], flush=True)
        with running(engine, {"engine": (str(folder / "model"),)}) as orders:
            contenders = {str(count): lambda count=count: orders["engine"](count) for count in BATCHES}
            times = interleaved(contenders, 3)
    finally:
        shutil.rmtree(folder)
    seconds = {
        name: {phase: statistics.median(r["seconds"][phase] for r in of_name) for phase in PHASES}
        for name, of_name in runs.items()
    }
    peaks = {name: max(r["peak_bytes"][0] for r in of_name) for name, of_name in runs.items()}
    tokens = {count: count * COMPLETION / statistics.median(times[str(count)]) for count in BATCHES}
    step = {name: sum(phases.values()) for name, phases in seconds.items()}
    rows = [
        {"processes": name}
        | {f"{phase} (s)": f"{seconds[name][phase]:.2f}" for phase in PHASES}
        | {"step (s)": f"{step[name]:.2f}", "of one process": f"{step[name] / step['1 process']:.2f}"}
        | {"peak a process (MiB)": f"{peaks[name] / 2**20:.0f}"}
        for name in CONFIGS
    ]
    print("\n| sequences together | tokens/s | times those of one |\n|---|---:|---:|")
    for count, value in tokens.items():
        print(f"| {count} | {value:.0f} | {value / tokens[1]:.1f} |")
    result = {
        "hardware": hardware("cpu"), "layers": LAYERS, "sequences": SEQUENCES, "rounds": rounds,
        "seconds": seconds, "peak_bytes": peaks, "rollout_tokens_per_second": tokens,
    }  # fmt: skip
    report(result, rows, args.out)


if __name__ == "__main__":
    main()
