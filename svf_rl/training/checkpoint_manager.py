"""Writes the checkpoints of a training run, and resumes from one so that the run is the same to the bit.

transformers saves and reads the optimizer, the schedule, its own counters and the random number generators, TRL nothing
of its own. What is missing there is in `trainer_state.py`; what a checkpoint is on the disk, in `checkpoints.py`; which
one may be resumed from, in `resume.py`.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather, gather_object
from datasets import Dataset
from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_utils import SaveStrategy

from svf_rl.errors import SVFError
from svf_rl.runs.provenance import remove_secrets
from svf_rl.runs.summary import read_package_versions
from svf_rl.storage.disk_errors import disk_errors
from svf_rl.storage.folders import partial_folder
from svf_rl.training import checkpoints, trainer_state
from svf_rl.training.checkpoints import METRICS, WRITTEN, Manifest
from svf_rl.training.earlier_run import remove_run
from svf_rl.training.pickled_files import check_plain, pickled_files
from svf_rl.training.resume import check_same_machinery, check_same_run, find_checkpoint, rows_digest
from svf_rl.training.run_context import RunContext, leave_process_group, stopped

if TYPE_CHECKING:
    from svf_rl.training.trainer import SVFReinforceTrainer


class CheckpointManager(TrainerCallback):
    """The checkpoints of one trainer, which calls the methods from its overrides of transformers' own. As a callback it
    learns when training is about to begin, and whether the last step of an epoch was made. The context has what
    training is about to resume from, or resumed from, and the settings and rows that the two must share."""

    def __init__(self, trainer: "SVFReinforceTrainer", context: RunContext) -> None:
        self._trainer, self._context = trainer, context
        self._state: dict[str, Any] = {}  # of the trainer, from the checkpoint
        self._begun = self._ended_early = False
        self._again = False  # this trainer has trained before, in the same folder
        self._saved_step = -1
        self._postponed = self._epoch_over = False
        trainer.add_callback(self)

    @property
    def _output(self) -> Path:
        return Path(self._trainer.args.output_dir)

    # ---- resuming -----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """
        Start a run in the output folder, or put its files back to the step of the context's checkpoint: what was logged
        and saved later is removed. [`train`] then resumes from it. All processes call it together.

        Raises:
            SVFError: the checkpoint is not one of this run, or the processes do not see the same one.
        """
        trainer, context, output = self._trainer, self._context, self._output
        checkpoint = context.checkpoint
        folder = None if checkpoint is None else checkpoint.folder
        if len(set(gather_object([str(folder)]))) > 1:
            raise SVFError(f"the processes do not see the same checkpoints: {output} must be a folder that all share")
        context.settings = context.settings or trainer.args.to_dict()
        if not context.rows:
            held_out = trainer.eval_dataset
            sets = held_out if isinstance(held_out, dict) else {"validation": held_out}
            splits = {"training": trainer.train_dataset, **sets}
            context.rows = {name: rows_digest(rows) for name, rows in splits.items() if isinstance(rows, Dataset)}
        # an evaluation before training has begun the metrics
        checkpoints.check_ours(output, written=[name for name in WRITTEN if name != METRICS])
        self._begun = True
        if checkpoint is None:
            if trainer.is_world_process_zero():
                if trainer.args.overwrite_output_dir and not self._again:
                    remove_run(output)
                checkpoints.clear_leftovers(output)
                if checkpoints.current_run(output) is not None:
                    checkpoints.remove_tables(output, after=0)  # of this trainer's own first run, as its metrics
                trainer.recorder.name_run(checkpoints.name_run(output))
            return
        check_same_run(checkpoint, context.settings, trainer.args.world_size)
        check_same_machinery(checkpoint, context.rows, self._parallelism())
        self._check_plain(checkpoint.folder)
        self._state = trainer_state.load_trainer_state(trainer, checkpoint.folder)
        if self._state["buffered"] is not None and not self._same_batches():
            raise SVFError(
                f"{folder} was written in the middle of the steps that one generation is for: resume with the "
                "processes and batch sizes of before"
            )
        if trainer.start is not None:
            trainer.start.load(checkpoint.folder)
        trainer.accelerator.wait_for_everyone()  # before files are removed that another process is still to read
        if trainer.is_world_process_zero():
            checkpoints.clear_leftovers(output)
            checkpoints.cut_back(output, checkpoint)
            trainer.recorder.name_run(checkpoints.name_run(output, checkpoint.manifest.run))
        trainer.recorder.resume(self._state["tensorboard"], checkpoint.manifest.step)
        trainer.accelerator.wait_for_everyone()
        context.base = self._state["run_state"]["base"]
        context.warm_up = self._state["run_state"].get("warm_up") or {}
        context.phases.add(self._state["run_state"]["seconds"])

    def _check_plain(self, folder: Path) -> None:
        """Raises `SVFError` on all processes, which share the work, where a file of the checkpoint could run code."""
        args, deepspeed, refused = self._trainer.args, self._trainer.is_deepspeed_enabled, None
        files = pickled_files(folder, deepspeed)
        try:
            check_plain(files[args.process_index :: args.world_size], deepspeed)
        except SVFError as error:
            refused = str(error)
        for line in gather_object([refused]):
            if line is not None:
                raise SVFError(line)

    @contextmanager
    def running(self, wanted: str | bool | None) -> Iterator[str | None]:
        """Around training: the folder that transformers resumes from, if any. [`begin`] is called, with the checkpoint
        that `wanted` means ([`find_checkpoint`]), unless it was called before."""
        if not self._begun:
            if wanted or not self._again:
                overwrite = self._trainer.args.overwrite_output_dir and not self._again
                self._context.checkpoint = find_checkpoint(wanted, self._output, overwrite)
            self.begin()
        try:
            yield None if self._context.checkpoint is None else str(self._context.checkpoint.folder)
        finally:
            self._begun, self._again, self._context.checkpoint, self._state = False, True, None, {}
            for callback in self._trainer.callback_handler.callbacks:
                if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
                    callback.training_bar.close()  # what is said of its end is to stand on a line by itself

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """transformers has loaded what it saved, and reset the rest."""
        trainer, checkpoint = self._trainer, self._context.checkpoint
        self._saved_step = trainer.state.global_step
        self._postponed = self._epoch_over = self._ended_early = False
        if checkpoint is None:
            return
        patience = trainer.args.early_stopping_patience
        self._ended_early = patience is not None and self._state["ended_early"] == patience
        # the checkpoint's own intervals came with its state
        trainer.state.compute_steps(trainer.args, trainer.state.max_steps)
        best = checkpoints.checkpoint_folder(checkpoint.folder.parent, trainer.state.best_global_step or -1)
        if checkpoints.run_of(best) == checkpoint.manifest.run:
            trainer.state.best_model_checkpoint = str(best)
        trainer.model.train()
        trainer.args.eval_on_start = False  # this is not the start
        trainer_state.restore_trainer_state(trainer, self._state, self._same_batches())

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self._epoch_over = False

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self._epoch_over = True

    def skip_epochs(self, sampler: Any) -> None:
        """Draw the orders of past epochs once more: a sampler draws one an epoch, all from one generator."""
        checkpoint = self._context.checkpoint
        if checkpoint is None or not getattr(sampler, "shuffle", False):
            return
        epoch = json.loads((checkpoint.folder / "trainer_state.json").read_text(encoding="utf-8"))["epoch"]
        for _ in range(int(epoch)):
            torch.randperm(sampler.num_samples, generator=sampler.generator)

    def nothing_left(self) -> bool:
        """Whether the run had come to its end when the checkpoint was written."""
        return self._ended_early or self._trainer.state.global_step >= self._trainer.state.max_steps

    def same_processes(self) -> bool:
        """Whether there are as many processes as when the checkpoint was written."""
        assert self._context.checkpoint is not None
        return self._context.checkpoint.manifest.processes == self._trainer.args.world_size

    def _same_batches(self) -> bool:
        """Whether the micro-batches of a process are those of the checkpoint, and not only their sum."""
        assert self._context.checkpoint is not None
        before, now = self._context.checkpoint.manifest.settings, self._context.settings
        keys = ("per_device_train_batch_size", "gradient_accumulation_steps")
        return all(before[key] == now[key] for key in keys) and self.same_processes()

    def _parallelism(self) -> str:
        if self._trainer.is_deepspeed_enabled:
            return f"DeepSpeed ZeRO-{getattr(self._trainer.args.deepspeed_plugin, 'zero_stage', 0)}"
        return "no DeepSpeed"

    # ---- saving -------------------------------------------------------------------------------------------------

    def postpone(self) -> bool:
        """
        Called before what is due after a step (evaluation, log line, checkpoint). Whether the step is the last of an
        epoch, after which more is due: a checkpoint is then written after that, since a run that resumed from an
        earlier one would leave it out.
        """
        trainer, args = self._trainer, self._trainer.args
        by_epoch = "epoch" in (args.eval_strategy, args.logging_strategy, args.save_strategy)
        ends_epoch = trainer.state.epoch % 1 == 0 or trainer.control.should_training_stop
        if not self._epoch_over and by_epoch and ends_epoch:
            self._postponed, trainer.control.should_save = trainer.control.should_save, False
            return True
        trainer.control.should_save |= self._postponed
        self._postponed = False
        return False

    def stop_if_asked(self) -> None:
        """End the run with a checkpoint where a signal has asked any process to stop."""
        trainer, stop = self._trainer, self._context.stop
        asked = gather(torch.tensor([int(stop.requested is not None)], device=trainer.accelerator.device))
        if not asked.any():
            return
        if self._saved_step != trainer.state.global_step or trainer.args.save_only_model:
            self.save(resumable=True)
            trainer.control = trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
        folder = checkpoints.checkpoint_folder(self._output, trainer.state.global_step)
        trainer.accelerator.wait_for_everyone()
        leave_process_group()
        name = stop.requested or "a signal to another process"
        raise stopped(f"stopped by {name} after step {trainer.state.global_step}: --resume resumes from {folder}")

    def save(self, resumable: bool) -> None:
        """Write a checkpoint, with all that a run needs to be resumed from it, or the adapter alone."""
        trainer = self._trainer
        trainer.store_flos()
        folder = checkpoints.checkpoint_folder(self._output, trainer.state.global_step)
        best = trainer.state.best_global_step
        if best and trainer.args.save_strategy != SaveStrategy.NO:
            place = checkpoints.checkpoint_folder(self._output, best)
            if place == folder or checkpoints.run_of(place) == checkpoints.current_run(self._output):
                trainer.state.best_model_checkpoint = str(place)
        try:
            with disk_errors(folder):
                self._write(folder, resumable)
        except SVFError as error:
            if trainer.is_world_process_zero():
                checkpoints.clear_leftovers(self._output)  # its room on a full disk too
            raise SVFError(f"{error}; {self._last_checkpoint()}") from error
        trainer.accelerator.wait_for_everyone()
        self._saved_step = trainer.state.global_step
        if trainer.args.push_to_hub:
            trainer._push_from_checkpoint(str(folder))

    def _write(self, folder: Path, resumable: bool) -> None:
        trainer, output, partial = self._trainer, self._output, partial_folder(folder)
        if trainer.is_world_process_zero():
            trainer.create_model_card()
            checkpoints.clear_leftovers(output)
            partial.mkdir(parents=True)
        trainer.accelerator.wait_for_everyone()
        trainer.save_model(str(partial), _internal_call=True)
        if resumable:
            trainer._save_optimizer_and_scheduler(str(partial))
            trainer._save_scaler(str(partial))
            trainer._save_rng_state(str(partial))
            trainer_state.save_trainer_state(trainer, partial)
            if trainer.start is not None and trainer.is_world_process_zero():
                trainer.start.save(partial)
        trainer.accelerator.wait_for_everyone()
        if not trainer.is_world_process_zero():
            return
        arrived, processes = len(list(partial.glob(trainer_state.FILE.format("*")))), trainer.args.world_size
        if resumable and arrived != processes:
            raise SVFError(
                f"{output} got the files of {arrived} of {processes} processes: output_dir must be a folder that all "
                "nodes share"
            )
        trainer.state.save_to_json(str(partial / "trainer_state.json"))
        metrics = output / METRICS
        (partial / METRICS).write_bytes(metrics.read_bytes() if metrics.is_file() else b"")
        checkpoints.publish(partial, folder, self._manifest(resumable))
        best = trainer.state.best_model_checkpoint
        checkpoints.prune(output, trainer.args.save_total_limit, [folder] if best is None else [folder, Path(best)])

    def check_gradient(self, norm: Any) -> None:
        """Raises `SVFError` where the norm of a gradient is not finite. (With fp16's gradient scaler infinite ones are
        expected.)"""
        trainer = self._trainer
        scaled = trainer.args.fp16 or trainer.accelerator.scaler is not None
        if norm is not None and not scaled and not math.isfinite(float(norm)):
            raise SVFError(
                f"the gradient of step {trainer.state.global_step + 1} is not finite (norm {float(norm)}), and the "
                f"step was not made; {self._last_checkpoint()}. Look for rewards that are inf or nan, lower "
                "learning_rate, or give dtype: float32"
            )

    def _last_checkpoint(self) -> str:
        run, found = checkpoints.current_run(self._output), checkpoints.checkpoints(self._output)
        manifests = {path: checkpoints.read_manifest(path) for path in found}
        ours = [path for path, content in manifests.items() if content.get("run") == run and content.get("resumable")]
        return f"--resume resumes from {ours[-1]}" if ours else "there is no earlier checkpoint to resume from"

    def _manifest(self, resumable: bool) -> Manifest:
        return Manifest(
            run=checkpoints.current_run(self._output) or checkpoints.name_run(self._output),
            step=self._trainer.state.global_step,
            processes=self._trainer.args.world_size,
            parallelism=self._parallelism(),
            resumable=resumable,
            settings=remove_secrets(self._context.settings),
            rows=self._context.rows,
            packages=read_package_versions(),
        )
