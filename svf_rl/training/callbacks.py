"""Callbacks of a training run."""

import json
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from svf_rl.storage.disk_errors import disk_errors
from svf_rl.svf.layer import fetch_with_layers

TIMING = ("time/", "step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second")
"""How the names of metrics begin that measure seconds: the only ones that differ between two runs of one recipe."""


class FetchLayers(TrainerCallback):
    """Tells ZeRO-3, when DeepSpeed has taken the model over, what each SVF layer computes with."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        fetch_with_layers(model)


class MetricsFile(TrainerCallback):
    """Writes every logged line of metrics to `metrics.jsonl` in the output folder."""

    def __init__(self) -> None:
        self._mode = "w"  # the first line of a new run starts the file over

    def append(self) -> None:
        """Append to the file as it is."""
        self._mode = "a"

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs is not None:
            path = Path(args.output_dir) / "metrics.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            with disk_errors(path), path.open(self._mode) as file:
                self._mode = "a"
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


class ProgressLine(ProgressCallback):
    """The bar of transformers with the few numbers a person watches beside it; everything is in `metrics.jsonl`."""

    _SHOWN = {  # noqa: RUF012
        "reward": "reward", "cross_entropy": "cross-entropy", "kl": "kl", "eval_accuracy": "held-out accuracy",
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[str, str] = {}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.training_bar is None or logs is None:
            return
        for key, name in self._SHOWN.items():
            if logs.get(key) is not None:
                self._values[name] = f"{logs[key]:.3g}"
        self.training_bar.set_postfix(self._values)
