"""What a training step measures, and where it is shown: `metrics.jsonl` and the bar."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather, gather_object
from torch import Tensor
from transformers import ProgressCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.integrations.integration_utils import default_logdir
from trl import GRPOTrainer
from trl.trainer.utils import nanstd

from svf_rl.episodes.rollout import Answer, EpisodeCounts, Rollout
from svf_rl.errors import SVFError
from svf_rl.rewards.references import is_number
from svf_rl.storage.disk_errors import disk_errors


class MetricsRecorder(TrainerCallback):
    """Fills the metrics and the tables of completions that TRL logs, under TRL's names where it has one, and writes
    every line that is logged to `metrics.jsonl`."""

    def __init__(self, trainer: GRPOTrainer) -> None:
        self._trainer = trainer
        self.seconds: dict[str, float] = {}
        """Of the step under way, by what they went into."""
        self._begins_step = True  # the next micro-batch
        self._mode = "w"  # the first line of a new run starts the file over
        trainer.add_callback(self)
        for callback in self._tensorboards():
            # what is logged before training too: transformers would begin a log in the working directory for that
            callback.logging_dir = callback.logging_dir or str(Path(trainer.args.output_dir) / default_logdir())

    def tensorboard_folder(self) -> str | None:
        """Of the run's TensorBoard log, below `output_dir`; `None` where there is none, or it is elsewhere."""
        output = Path(self._trainer.args.output_dir).absolute()
        folders = [Path(callback.logging_dir).absolute() for callback in self._tensorboards()]
        return next((str(path.relative_to(output)) for path in folders if path.is_relative_to(output)), None)

    def resume(self, tensorboard_folder: str | None, step: int) -> None:
        """Append to `metrics.jsonl` as it is, and continue the TensorBoard log in its folder, where what was logged
        after step `step` no longer counts."""
        self._mode = "a"
        if tensorboard_folder is None or not self._trainer.is_world_process_zero():
            return
        for callback in self._tensorboards():
            from torch.utils.tensorboard import SummaryWriter

            callback.logging_dir = str(Path(self._trainer.args.output_dir) / tensorboard_folder)
            callback.tb_writer = SummaryWriter(log_dir=callback.logging_dir, purge_step=step + 1)

    def name_run(self, run: str) -> None:
        """Give what Trackio shows a name by that of the run: it ends its run with the training, and the evaluation
        after it, or a run that resumes, goes on there."""
        args = self._trainer.args
        if args.run_name is None and "trackio" in args.report_to:
            args.run_name = f"{Path(args.output_dir).absolute().name}-{run[:8]}"

    def start_reporters(self) -> None:
        """Begin what `report_to` names where an evaluation before or after training logs first: transformers begins it
        with the training, and TRL logs to it before that."""
        trainer = self._trainer
        for callback in trainer.callback_handler.callbacks:
            if hasattr(callback, "setup") and not getattr(callback, "_initialized", True):
                callback.setup(trainer.args, trainer.state, trainer.model)

    def _tensorboards(self) -> list[TensorBoardCallback]:
        return [c for c in self._trainer.callback_handler.callbacks if isinstance(c, TensorBoardCallback)]

    def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
        if self._trainer.is_world_process_zero():
            path = Path(self._trainer.args.output_dir) / "metrics.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            with disk_errors(path), path.open(self._mode) as file:
                self._mode = "a"
                file.write(json.dumps({"step": self._trainer.state.global_step, **logs}) + "\n")

    def add(self, name: str, value: float) -> None:
        """Add a value to the metrics of this step."""
        self._trainer._metrics["train"][name].append(value)

    def add_mean(self, name: str, values: Tensor) -> None:
        """Add the mean of `values` over all processes to the metrics of this step."""
        pair = torch.stack([values.detach().float().sum(), torch.tensor(float(values.numel()), device=values.device)])
        total, count = gather(pair).view(-1, 2).sum(0).tolist()
        if count:
            self.add(name, total / count)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Count the seconds of the block under `name`."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    @contextmanager
    def micro_step(self) -> Iterator[None]:
        """Around one micro-batch: what is not counted elsewhere is the update's."""
        trainer = self._trainer
        if self._begins_step:
            self.seconds = dict.fromkeys(("rollout", "reward", "sync", "update"), 0.0)
        start, before = time.perf_counter(), sum(self.seconds.values())
        yield
        self.seconds["update"] += time.perf_counter() - start - (sum(self.seconds.values()) - before)
        # after the last one of a step, of which an epoch's last may have fewer
        self._begins_step = trainer.accelerator.sync_gradients
        if self._begins_step:
            for name, seconds in self.seconds.items():
                self.add(f"time/{name}", seconds)

    def add_lengths(self, rollout: Rollout) -> None:
        """Add the lengths of prompts and completions, of these what the model wrote, and how many completions were cut
        off. TRL counts as cut off whatever has no end-of-sequence token, what a stop string ended too."""
        trainer = self._trainer
        rows = zip(rollout.prompt_ids, rollout.lengths, rollout.finished, strict=True)
        counts = [(len(prompt), length, finished) for prompt, length, finished in rows]
        prompts, completions, finished = gather(torch.tensor(counts, device=trainer.accelerator.device)).unbind(1)
        trainer.state.num_input_tokens_seen += (prompts.sum() + completions.sum()).item()
        trainer._metrics["train"]["num_tokens"] = [trainer.state.num_input_tokens_seen]
        lengths, ended = completions.float(), completions[finished.bool()].float()
        if len(ended) == 0:
            ended = torch.zeros(1)  # as TRL has it
        self.add("completions/mean_length", lengths.mean().item())
        self.add("completions/min_length", lengths.min().item())
        self.add("completions/max_length", lengths.max().item())
        self.add("completions/clipped_ratio", (1 - finished).float().mean().item())
        self.add("completions/mean_terminated_length", ended.mean().item())
        self.add("completions/min_terminated_length", ended.min().item())
        self.add("completions/max_terminated_length", ended.max().item())

    def add_episodes(self, counts: EpisodeCounts) -> None:
        """Add how often tools were called, by an episode, and which share of the calls failed or did not end; and which
        share of the episodes outgrew the context."""
        own = torch.tensor(list(asdict(counts).values()), device=self._trainer.accelerator.device)
        episodes, calls, failures, timeouts, outgrown = gather(own).view(-1, len(own)).sum(0).tolist()
        self.add("tools/call_frequency", calls / episodes)
        self.add("tools/failure_frequency", failures / max(calls, 1))
        self.add("tools/timeout_frequency", timeouts / max(calls, 1))
        self.add("tools/outgrown_ratio", outgrown / episodes)

    def add_rewards(self, rewards: Tensor, total: Tensor) -> None:
        """
        Add mean and deviation of the rewards.

        Args:
            rewards (`Tensor` of shape `(N, functions)`): Of all processes, NaN where a function could not score.
            total (`Tensor` of shape `(N,)`): Their weighted sum, NaN where none could.
        """
        group_size = self._trainer.num_generations
        for name, column in zip(self._trainer.reward_func_names, rewards.unbind(1), strict=True):
            self.add(f"rewards/{name}/mean", torch.nanmean(column).item())
            self.add(f"rewards/{name}/std", nanstd(column).item())
        groups = total.view(-1, group_size)
        # NaN where fewer than two could be scored: nothing to compare either
        deviation = nanstd(groups, dim=1).nan_to_num(0) if group_size > 1 else torch.zeros_like(total)
        self.add("reward", torch.nanmean(total).item())
        self.add("reward_std", nanstd(total).item())
        self.add("frac_reward_zero_std", torch.isclose(deviation, torch.zeros_like(deviation)).float().mean().item())

    def add_reward_logs(self, completions: int) -> None:
        """Add what rewards have logged by themselves (`log_extra`, `log_metric`) for this process's `completions`.
        Names are sorted, since all processes must gather in one order."""
        trainer = self._trainer
        for column in sorted(set(gather_object(list(trainer._pending_extra_logs)))):
            values = list(trainer._pending_extra_logs.get(column, [None] * completions))
            if len(values) != completions:
                raise SVFError(
                    f"log_extra({column!r}, ...) was given {len(values)} values for {completions} completions: give "
                    "one each, once a column"
                )
            trainer._logs["extra"][column].extend(gather_object(values))
        for name in sorted(set(gather_object(list(trainer._pending_metrics)))):
            values = trainer._pending_metrics.get(name, [])
            for value in values:
                if not is_number(getattr(value, "item", lambda value=value: value)()):
                    raise SVFError(f"log_metric({name!r}, ...) was given {value!r:.60}: give a number")
            pair = torch.tensor([sum(values), len(values)], dtype=torch.float32, device=trainer.accelerator.device)
            total, count = gather(pair).view(-1, 2).sum(0).tolist()
            self.add(name, total / count)
        self.drop_reward_logs()

    def drop_reward_logs(self) -> None:
        """Forget what rewards have logged by themselves: in an evaluation it is of no row of the next step."""
        self._trainer._pending_extra_logs.clear()
        self._trainer._pending_metrics.clear()

    def add_table(self, rollout: Rollout, rewards: Tensor, advantages: Tensor) -> None:
        """Add rows to the table of completions: `rewards` (N, functions) and `advantages` (N,) of all processes."""
        logs = self._trainer._logs
        logs["prompt"].extend(gather_object(rollout.prompts))
        logs["completion"].extend(gather_object([_storable(completion) for completion in rollout.completions]))
        for name, column in zip(self._trainer.reward_func_names, rewards.unbind(1), strict=True):
            logs["rewards"][name].extend(column.tolist())
        logs["advantages"].extend(advantages.tolist())


def _storable(completion: Answer) -> Answer:
    """With the arguments of tools as text: a model writes any, and a column of a table has values of one type."""
    if isinstance(completion, str):
        return completion
    return [
        {**message, "tool_calls": [_storable_call(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in completion
    ]


def _storable_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function") or call
    given = function["arguments"]
    given = given if isinstance(given, dict) else {"arguments": given}  # TRL prints them by their names
    arguments = json.dumps(given, ensure_ascii=False, default=str)
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


class ProgressLine(ProgressCallback):
    """The bar of transformers with the few numbers a person watches beside it; everything is in `metrics.jsonl`."""

    _SHOWN = {  # noqa: RUF012
        "reward": "reward", "cross_entropy": "cross-entropy", "kl": "kl", "eval_accuracy": "validation accuracy",
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[str, str] = {}

    def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
        if self.training_bar is not None:
            shown = {name: logs[key] for key, name in self._SHOWN.items() if logs.get(key) is not None}
            self._values |= {name: f"{value:.3g}" for name, value in shown.items()}
            self.training_bar.set_postfix(self._values)
