"""The part of the trainer that measures an update: seconds by what they went into, and means over all processes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import gather
from torch import Tensor
from trl import GRPOTrainer

from svf_rl.training.policy import multiplier_statistics


class StepMetrics(GRPOTrainer):
    """Adds to what TRL logs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._seconds: dict[str, float] = {}
        super().__init__(*args, **kwargs)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        if self._step % self.current_gradient_accumulation_steps == 0:  # the first micro-batch of an update
            self._seconds = dict.fromkeys(("rollout", "reward", "sync", "update"), 0.0)
        start, before = time.perf_counter(), sum(self._seconds.values())
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._seconds["update"] += time.perf_counter() - start - (sum(self._seconds.values()) - before)
        if self._step % self.current_gradient_accumulation_steps == 0:  # the step counter has moved on: the last one
            for name, seconds in self._seconds.items():
                self._metrics["train"][f"time/{name}"].append(seconds)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training:
            logs = {**logs, **multiplier_statistics(self.accelerator.unwrap_model(self.model))}
        super().log(logs, start_time)

    def _record(self, name: str, values: Tensor) -> None:
        """Add the mean of `values` over all processes to the metrics of this step."""
        pair = torch.stack([values.detach().float().sum(), torch.tensor(float(values.numel()), device=values.device)])
        total, count = gather(pair).view(-1, 2).sum(0).tolist()
        if count:
            self._metrics["train"][name].append(total / count)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start
