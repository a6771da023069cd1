"""The part of the trainer that goes on from a checkpoint, so that the run is the same to the bit.

transformers reads the optimizer, the schedule, its own counters and the random number generators, TRL nothing of its
own. What is missing there is in `progress.py`; which checkpoint may be gone on from, in `resume.py`.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import ProgressCallback, TrainerCallback, TrainerControl

from svf_rl.errors import SVFError
from svf_rl.generation import CompletionGenerator
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.training import checkpoints, run_files
from svf_rl.training.callbacks import MetricsFile
from svf_rl.training.checkpoints import Manifest
from svf_rl.training.optimizer_state import OptimizerState
from svf_rl.training.resume import check_same_machinery, check_same_run, find_checkpoint, rows_digest
from svf_rl.training.trainer_state import load_progress, restore_progress

logger = logging.getLogger(__name__)


class GoingOn(OptimizerState):
    """Adds to what transformers reads back."""

    args: SVFReinforceConfig
    control: TrainerControl
    generator: CompletionGenerator
    _synced: str | None
    _seconds: dict[str, float]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.settings: dict[str, Any] | None = None
        """What a run that goes on must have in common with its checkpoint; default: the trainer's own settings."""
        self.rows: dict[str, str] | None = None
        """Digest of the rows by split ([`rows_digest`]); default: of those of training and validation."""
        self._resumed: tuple[Path, Manifest] | None = None
        self._ended_early = False
        self._train_sampler: Any = None
        super().__init__(*args, **kwargs)
        self.add_callback(MetricsFile())
        self.add_callback(_AtTheStart(self._restore))

    def go_on_from(self, wanted: str | bool | None) -> dict[str, Any] | None:
        """
        Find the checkpoint that `wanted` means, check it, and put the files of the run back to its update: what was
        logged and saved later is removed. [`train`] then goes on from it.

        Args:
            wanted (`str` or `bool`, *optional*): `"auto"`, `True`, or a folder ([`find_checkpoint`]).

        Returns:
            `dict`, *optional*: the `run_state` of the checkpoint; `None` where a new run begins.

        Raises:
            SVFError: no such checkpoint, or not one of this run.
        """
        output = Path(self.args.output_dir)
        folder = find_checkpoint(wanted, output)
        if len(set(gather_object([str(folder)]))) > 1:
            raise SVFError(f"the processes do not see the same checkpoints: {output} must be a folder that all share")
        if folder is None:
            self._resumed = None
            if self.is_world_process_zero():
                if not wanted and (earlier := checkpoints.checkpoints(output)):
                    logger.warning("begins anew beside %s of an earlier run (--resume goes on)", earlier[-1])
                checkpoints.clear_leftovers(output)
                run_files.remove_tables(output, after=0)  # of an earlier run, as its metrics
                checkpoints.name_run(output)
            return None
        manifest = checkpoints.check(folder)
        check_same_run(manifest, folder, self._run_settings(), self.args.world_size)
        check_same_machinery(manifest, folder, self._run_rows(), self._parallelism())
        self._resumed = folder, manifest
        values = load_progress(self, folder)
        if values["buffered"] is not None and not self._same_batches():
            raise SVFError(
                f"{folder} was written in the middle of the updates that one generation is for: go on with the "
                "processes and batch sizes of before"
            )
        self.accelerator.wait_for_everyone()  # before files are removed that another process is still to read
        if self.is_world_process_zero():
            checkpoints.clear_leftovers(output)
            run_files.cut_back(output, folder, manifest.step)
            checkpoints.name_run(output, manifest.run)
            run_files.continue_tensorboard(self, values["tensorboard"], manifest.step)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, MetricsFile):
                callback.append()
        self.accelerator.wait_for_everyone()
        return values["run_state"]

    @property
    def resumed_step(self) -> int | None:
        """The update that training is about to go on after, if it is not to begin anew."""
        return None if self._resumed is None else self._resumed[1].step

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        if self._resumed is None:
            self.go_on_from(resume_from_checkpoint)
        folder = None if self._resumed is None else str(self._resumed[0])
        try:
            return super().train(folder, *args, **kwargs)
        finally:
            self._resumed = None
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
                    callback.training_bar.close()  # what is said of its end is to stand on a line by itself

    def _restore(self) -> None:
        """Called when transformers has loaded what it saved, and reset the rest."""
        self._ended_early = False
        if self._resumed is None:
            return
        folder, _ = self._resumed
        values = load_progress(self, folder)
        restore_progress(self, values, self._same_batches())
        patience = self.args.early_stopping_patience
        self._ended_early = patience is not None and values["ended_early"] == patience
        self._seconds = values["seconds"]
        self.state.compute_steps(self.args, self.state.max_steps)  # the checkpoint's own intervals came with its state
        best = checkpoints.checkpoint_folder(folder.parent, self.state.best_global_step or -1)
        if checkpoints.run_of(best) == checkpoints.run_of(folder):
            self.state.best_model_checkpoint = str(best)
        for _ in range(int(self.state.epoch)):  # the sampler draws an order an epoch, and has drawn none yet
            self._skip_order()
        self.model.train()
        self.args.eval_on_start = False  # this is not the start
        # The generator gets all weights now, and takes itself for as up to date as it was: what is logged of syncs then
        # is what was logged without the interruption.
        self.generator.sync(self.accelerator.unwrap_model(self.model), True)
        self._synced = values["synced"]

    def _skip_order(self) -> None:
        sampler = self._train_sampler
        if getattr(sampler, "shuffle", False):
            torch.randperm(sampler.num_samples, generator=sampler.generator)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Any:
        self._train_sampler = super()._get_train_sampler(dataset)
        return self._train_sampler

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self._ended_early or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True  # transformers would make one update more
            return
        super()._run_epoch(*args, **kwargs)

    def _run_settings(self) -> dict[str, Any]:
        if self.settings is None:
            self.settings = self.args.to_dict()
        return {key: value for key, value in self.settings.items() if key != "hub_token"}

    def _run_rows(self) -> dict[str, str]:
        if self.rows is None:
            splits = {"training": self.train_dataset, "validation": self.eval_dataset}
            self.rows = {name: rows_digest(rows) for name, rows in splits.items() if isinstance(rows, Dataset)}
        return self.rows

    def _parallelism(self) -> str:
        if self.is_deepspeed_enabled:
            return f"DeepSpeed ZeRO-{getattr(self.args.deepspeed_plugin, 'zero_stage', 0)}"
        return "no DeepSpeed"

    def _same_batches(self) -> bool:
        """Whether the micro-batches of a process are those of the checkpoint, and not only their sum."""
        assert self._resumed is not None
        manifest, settings = self._resumed[1], self._run_settings()
        keys = ("per_device_train_batch_size", "gradient_accumulation_steps")
        same = all(manifest.settings[key] == settings[key] for key in keys)
        return same and manifest.processes == self.args.world_size


class _AtTheStart(TrainerCallback):
    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._action()
