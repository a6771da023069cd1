"""The part of the trainer that writes checkpoints and goes on from them, so that the run is the same to the bit.

transformers saves the optimizer, the schedule, its own counters and the random number generators, TRL nothing of its
own. What is missing there is in `progress.py`; what a checkpoint is on the disk, in `checkpoints.py`.
"""

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather, gather_object
from datasets import Dataset
from transformers import ProgressCallback, TrainerCallback, TrainerControl
from transformers.trainer_utils import SaveStrategy

from svf_rl.errors import SVFError
from svf_rl.new_folder import disk_errors
from svf_rl.training import checkpoints, run_files
from svf_rl.training.callbacks import MetricsFile
from svf_rl.training.checkpoints import Manifest
from svf_rl.training.config import SVFReinforceConfig
from svf_rl.training.optimizer_state import OptimizerState
from svf_rl.training.process_group import leave_process_group
from svf_rl.training.progress import load_progress, restore_progress, save_progress
from svf_rl.training.resume import check_same_machinery, check_same_run, find_checkpoint, rows_digest
from svf_rl.training.signals import StopRequest, stopped
from svf_rl.training.versions import package_versions


class Checkpointing(OptimizerState):
    """Replaces how transformers writes checkpoints, and adds to what it reads back."""

    args: SVFReinforceConfig
    control: TrainerControl
    rollouts: Any
    _synced: str | None
    _seconds: dict[str, float]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.stop = StopRequest()
        """A script that wants to end at a signal listens with it."""
        self.settings: dict[str, Any] | None = None
        """What a run that goes on must have in common with its checkpoint; default: the trainer's own settings."""
        self.rows: dict[str, str] | None = None
        """Digest of the rows by split ([`rows_digest`]); default: of those of training and validation."""
        self.run_state: Callable[[], dict[str, Any]] = dict
        """Plain values of the script that are kept in a checkpoint."""
        self._resumed: tuple[Path, Manifest] | None = None
        self._saved_step = -1
        self._ended_early = self._postponed = self._epoch_over = False
        self._train_sampler: Any = None
        super().__init__(*args, **kwargs)
        self.add_callback(MetricsFile())
        self.add_callback(_AtTheStart(self._restore))
        run_files.keep_tensorboard_with_the_run(self)

    # ---- going on -----------------------------------------------------------------------------------------------

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
        """As in transformers; `resume_from_checkpoint` is what [`go_on_from`] takes, unless that was called before."""
        if self._resumed is None:
            self.go_on_from(resume_from_checkpoint)
        folder = None if self._resumed is None else str(self._resumed[0])
        try:
            with self.stop.waits_for_update():
                return super().train(folder, *args, **kwargs)
        finally:
            self._resumed = None
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
                    callback.training_bar.close()  # what is said of its end is to stand on a line by itself

    def _restore(self) -> None:
        """Called when transformers has loaded what it saved, and reset the rest."""
        self._saved_step = self.state.global_step
        self._ended_early = self._postponed = self._epoch_over = False
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
        if best.is_dir():
            self.state.best_model_checkpoint = str(best)
        for _ in range(int(self.state.epoch)):  # the sampler draws an order an epoch, and has drawn none yet
            self._skip_order()
        self.model.train()
        self.args.eval_on_start = False  # this is not the start
        # The generator gets all weights now, and takes itself for as up to date as it was: what is logged of syncs then
        # is what was logged without the interruption.
        self.rollouts.sync(self.accelerator.unwrap_model(self.model), True)
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

    # ---- writing ------------------------------------------------------------------------------------------------

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        """Called after each update, and again at the end of an epoch. A checkpoint is written when all that is due
        after an update was done, and a run that was asked to stop does so then."""
        follows = not self._epoch_over and self._something_follows()
        if not follows:
            self.control.should_save |= self._postponed
            self._postponed = self._epoch_over = False
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, *args, **kwargs)
        asked = gather(torch.tensor([int(self.stop.requested is not None)], device=self.accelerator.device))
        if asked.any() and not follows:
            self._stop(model)

    def _something_follows(self) -> bool:
        """Whether this is the last update of an epoch, after which an evaluation, a log line or a checkpoint is due: a
        run that went on from a checkpoint written before these would leave them out."""
        by_epoch = "epoch" in (self.args.eval_strategy, self.args.logging_strategy, self.args.save_strategy)
        if not by_epoch or not (self.state.epoch % 1 == 0 or self.control.should_training_stop):
            return False
        self._postponed, self.control.should_save = self.control.should_save, False
        self._epoch_over = True
        return True

    def _stop(self, model: Any) -> None:
        if self._saved_step != self.state.global_step:
            self._save_checkpoint(model, None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        folder = checkpoints.checkpoint_folder(Path(self.args.output_dir), self.state.global_step)
        self.accelerator.wait_for_everyone()
        leave_process_group()
        name = self.stop.requested or "a signal to another process"
        raise stopped(f"stopped by {name} after update {self.state.global_step}: --resume goes on from {folder}")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.store_flos()
        output, step = Path(self.args.output_dir), self.state.global_step
        folder = checkpoints.checkpoint_folder(output, step)
        partial = checkpoints.partial_folder(folder)
        self._note_best(output, folder)
        with self._said_what_is_left(folder):
            if self.is_world_process_zero():
                self.create_model_card()
                checkpoints.clear_leftovers(output)
                partial.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self.save_model(str(partial), _internal_call=True)
            if not self.args.save_only_model:
                self._save_optimizer_and_scheduler(str(partial))
                self._save_scaler(str(partial))
                self._save_rng_state(str(partial))
                save_progress(self, partial, self._shared_progress())
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                self._check_all_arrived(partial)
                self.state.save_to_json(str(partial / "trainer_state.json"))
                run_files.copy_metrics(output, partial)
                checkpoints.publish(partial, folder, self._manifest(output))
                best = self.state.best_model_checkpoint
                keep = [folder] if best is None else [folder, Path(best)]
                checkpoints.prune(output, self.args.save_total_limit, keep)
        self.accelerator.wait_for_everyone()
        self._saved_step = step
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Called by the process that writes the adapter. A folder outside a checkpoint gets each file whole."""
        folder = Path(output_dir or self.args.output_dir)
        if folder.name.startswith(".checkpoint-"):
            super()._save(output_dir, state_dict)
            return
        partial = folder / ".adapter.partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            with disk_errors(folder):
                super()._save(str(partial), state_dict)
                checkpoints.move_files(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _note_best(self, output: Path, folder: Path) -> None:
        best = self.state.best_global_step
        if best and self.args.save_strategy != SaveStrategy.NO:
            place = checkpoints.checkpoint_folder(output, best)
            if place == folder or place.is_dir():
                self.state.best_model_checkpoint = str(place)

    @contextmanager
    def _said_what_is_left(self, folder: Path) -> Iterator[None]:
        try:
            with disk_errors(folder):
                yield
        except SVFError as error:
            if self.is_world_process_zero():
                checkpoints.clear_leftovers(folder.parent)  # its room on a full disk too
            raise SVFError(f"{error}; {self._last_checkpoint()}") from error

    def _last_checkpoint(self) -> str:
        found = [path for path in checkpoints.checkpoints(Path(self.args.output_dir)) if self._is_ours(path)]
        return f"--resume goes on from {found[-1]}" if found else "no checkpoint was written before"

    def _is_ours(self, folder: Path) -> bool:
        return checkpoints.run_of(folder) == checkpoints.current_run(Path(self.args.output_dir))

    def _shared_progress(self) -> dict[str, Any]:
        stops = self.control.should_training_stop and self.state.global_step < self.state.max_steps
        return {
            # by the patience of then: another one may see it otherwise
            "ended_early": self.args.early_stopping_patience if stops else None,
            "synced": self._synced,
            "seconds": self._seconds,
            "run_state": self.run_state(),
            "tensorboard": run_files.tensorboard_folder(self),
        }

    def _manifest(self, output: Path) -> Manifest:
        settings = self._run_settings()
        return Manifest(
            run=checkpoints.current_run(output) or checkpoints.name_run(output),
            step=self.state.global_step,
            processes=self.args.world_size,
            parallelism=self._parallelism(),
            resumable=not self.args.save_only_model,
            settings=settings,
            settings_digest=checkpoints.settings_digest(settings),
            rows=self._run_rows(),
            packages=package_versions(),
        )

    def _check_all_arrived(self, partial: Path) -> None:
        count = len(list(partial.glob("progress_*.pt")))
        if not self.args.save_only_model and count != self.args.world_size:
            raise SVFError(
                f"{partial.parent} got the files of {count} of {self.args.world_size} processes: output_dir must be a "
                "folder that all nodes share"
            )

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

    # ---- faults -------------------------------------------------------------------------------------------------

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Called before an update, and under DeepSpeed after it, which skips it then and keeps the norm of the one
        before. (With fp16's gradient scaler infinite ones are a matter of course.)"""
        norm = super()._get_grad_norm(model, grad_norm)
        if self.is_deepspeed_enabled and self.accelerator.optimizer_step_was_skipped:
            norm = math.nan
        scaled = self.args.fp16 or self.accelerator.scaler is not None
        if norm is not None and not scaled and not math.isfinite(float(norm)):
            raise SVFError(
                f"the gradient of update {self.state.global_step + 1} is not finite (norm {float(norm)}), and the "
                f"update was not made; {self._last_checkpoint()}. Look for rewards that are inf or nan, lower "
                "learning_rate, or give dtype: float32"
            )
        return norm


class _AtTheStart(TrainerCallback):
    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._action()
