"""The part of the trainer that writes checkpoints: what a run needs to come out as if it had not been interrupted.

How it goes on from them is in `going_on.py`; what neither transformers nor TRL saves, in `progress.py`; what a
checkpoint is on the disk, in `checkpoints.py`.
"""

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from svf_rl.errors import SVFError
from svf_rl.runs.versions import package_versions
from svf_rl.storage.disk_errors import disk_errors
from svf_rl.storage.folders import move_files, partial_folder
from svf_rl.svf.sharding import gather_parameters
from svf_rl.training import checkpoints, run_files
from svf_rl.training.checkpoints import Manifest
from svf_rl.training.going_on import GoingOn
from svf_rl.training.process_group import leave_process_group
from svf_rl.training.signals import StopRequest, stopped
from svf_rl.training.trainer_state import save_progress


class Checkpointing(GoingOn):
    """Replaces how transformers writes checkpoints."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.stop = StopRequest()
        """A script that wants to end at a signal listens with it."""
        self.run_state: Callable[[], dict[str, Any]] = dict
        """Plain values of the script that are kept in a checkpoint."""
        self._saved_step = -1
        self._postponed = self._epoch_over = False
        super().__init__(*args, **kwargs)
        self.add_callback(_EpochEnds(self._note_epoch))
        run_files.keep_tensorboard_with_the_run(self)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; `resume_from_checkpoint` is what [`go_on_from`] takes, unless that was called before."""
        with self.stop.waits_for_update():
            return super().train(*args, **kwargs)

    def _restore(self) -> None:
        self._saved_step = self.state.global_step
        self._postponed = self._epoch_over = False
        super()._restore()

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        """Called after each update, and again at the end of an epoch. A checkpoint is written when all that is due
        after an update was done, and a run that was asked to stop does so then."""
        follows = not self._epoch_over and self._something_follows()
        if not follows:
            self.control.should_save |= self._postponed
            self._postponed = False
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
        return True

    def _note_epoch(self, over: bool) -> None:
        self._epoch_over = over

    def _stop(self, model: Any) -> None:
        if self._saved_step != self.state.global_step or self.args.save_only_model:
            self._save_checkpoint(model, None, resumable=True)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        folder = checkpoints.checkpoint_folder(Path(self.args.output_dir), self.state.global_step)
        self.accelerator.wait_for_everyone()
        leave_process_group()
        name = self.stop.requested or "a signal to another process"
        raise stopped(f"stopped by {name} after update {self.state.global_step}: --resume goes on from {folder}")

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        # what is too many was removed with each checkpoint; transformers would not spare the last
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _save_checkpoint(self, model: Any, trial: Any, resumable: bool | None = None) -> None:
        """`resumable` for a checkpoint that a run can go on from, also where `save_only_model` is for less."""
        whole = not self.args.save_only_model if resumable is None else resumable
        self.store_flos()
        output, step = Path(self.args.output_dir), self.state.global_step
        folder = checkpoints.checkpoint_folder(output, step)
        partial = partial_folder(folder)
        self._note_best(output, folder)
        with self._said_what_is_left(folder):
            if self.is_world_process_zero():
                self.create_model_card()
                checkpoints.clear_leftovers(output)
                partial.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self.save_model(str(partial), _internal_call=True)
            if whole:
                self._save_optimizer_and_scheduler(str(partial))
                self._save_scaler(str(partial))
                self._save_rng_state(str(partial))
                save_progress(self, partial, self._shared_progress())
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                if whole:
                    self._check_all_arrived(partial)
                self.state.save_to_json(str(partial / "trainer_state.json"))
                run_files.copy_metrics(output, partial)
                checkpoints.publish(partial, folder, self._manifest(output, whole))
                best = self.state.best_model_checkpoint
                keep = [folder] if best is None else [folder, Path(best)]
                checkpoints.prune(output, self.args.save_total_limit, keep)
        self.accelerator.wait_for_everyone()
        self._saved_step = step
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in transformers, which under DeepSpeed would copy the whole model on each process, and take a full disk
        for a setting of ZeRO-3."""
        if not self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)
            return
        state = _trained_state(self.accelerator.unwrap_model(self.model))
        if self.args.should_save:
            self._save(output_dir, state)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

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
                move_files(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _note_best(self, output: Path, folder: Path) -> None:
        best = self.state.best_global_step
        if best and self.args.save_strategy != SaveStrategy.NO:
            place = checkpoints.checkpoint_folder(output, best)
            if place == folder or self._is_ours(place):
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
        found = [path for path in found if checkpoints.said_of(path).get("resumable")]
        return f"--resume goes on from {found[-1]}" if found else "no checkpoint was written before to go on from"

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

    def _manifest(self, output: Path, resumable: bool) -> Manifest:
        settings = self._run_settings()
        return Manifest(
            run=checkpoints.current_run(output) or checkpoints.name_run(output),
            step=self.state.global_step,
            processes=self.args.world_size,
            parallelism=self._parallelism(),
            resumable=resumable,
            settings=settings,
            settings_digest=checkpoints.settings_digest(settings),
            rows=self._run_rows(),
            packages=package_versions(),
        )

    def _check_all_arrived(self, partial: Path) -> None:
        count = len(list(partial.glob("progress_*.pt")))
        if count != self.args.world_size:
            raise SVFError(
                f"{partial.parent} got the files of {count} of {self.args.world_size} processes: output_dir must be a "
                "folder that all nodes share"
            )

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


def _trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What is trained, by its names in the model; all processes of ZeRO-3 gather it together."""
    state = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            with gather_parameters([parameter]):
                state[name] = parameter.detach().cpu().clone()
    return state


class _EpochEnds(TrainerCallback):
    """Tells whether the last update of an epoch was made."""

    def __init__(self, note: Callable[[bool], None]) -> None:
        self._note = note

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self._note(False)

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self._note(True)
