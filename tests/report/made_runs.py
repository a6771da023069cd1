"""Run folders as `svf_rl/train.py` leaves them, made in no time: the same files and keys, numbers of the test's own."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from svf_rl.svf import SVFConfig

RECIPE = {"adapter": "svf", "task": "quickstart", "skill": "math", "seed": 0, "max_steps": 10, "beta": 0.1}
Z, FINGERPRINT, PROBE = ".svf_z.weight", ".svf_fingerprint", ".svf_probe"


def jsonl(lines: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def update(step: int, **values: float) -> dict[str, Any]:
    """A line of an update: its reward is `step / 100`."""
    line = {"step": step, "loss": 0.1, "reward": step / 100, "rewards/numeric/mean": step / 100, "kl": step / 1000}
    line |= {"completions/mean_length": 17.0 + step % 2, "completions/clipped_ratio": 0.0, "unscorable": 0.0}
    line |= {"time/rollout": 0.25, "time/reward": 0.05, "time/sync": 0.1, "time/update": 0.6}
    return {**line, **values}


def metrics(updates: int, every: int = 5) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [{"step": 0, "base_accuracy": 0.5, "base_items": 200.0, "time/base": 1.0}]
    for step in range(1, updates + 1):
        lines.append(update(step))
        if step % every == 0:
            lines.append({"step": step, "eval_accuracy": 0.5 + step / 1000, "eval_items": 64.0})
    return lines


def write_adapter(folder: Path, z: dict[str, torch.Tensor] | None = None, config: dict[str, Any] | None = None) -> None:
    """An SVF adapter file; by default two layers with a gate and a down projection each."""
    if z is None:
        names = [f"model.layers.{layer}.mlp.{kind}_proj" for layer in range(2) for kind in ("gate", "down")]
        z = {name: 1 + 0.1 * torch.linspace(-1, 1, 8) for name in names}
    tensors = {}
    for name, values in z.items():
        tensors[f"base_model.model.{name}{Z}"] = values
        tensors[f"base_model.model.{name}{FINGERPRINT}"] = torch.zeros(32, dtype=torch.uint8)
        tensors[f"base_model.model.{name}{PROBE}"] = torch.zeros(16)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    SVFConfig(task_type="CAUSAL_LM", base_fingerprint="0" * 64).save_pretrained(str(folder))
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **(config or {})}))
