"""The files of a run beside its checkpoints: metrics, tables of completions, the TensorBoard log."""

import logging
from pathlib import Path

from transformers.integrations import TensorBoardCallback
from transformers.integrations.integration_utils import default_logdir
from trl import GRPOTrainer

from svf_rl.storage.files import write_file
from svf_rl.storage.folders import discard_folder
from svf_rl.training import checkpoints
from svf_rl.training.checkpoints import Checkpoint

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"


def copy_metrics(output: Path, folder: Path) -> None:
    """Put the metrics of the run so far into a checkpoint."""
    source = output / METRICS
    (folder / METRICS).write_bytes(source.read_bytes() if source.is_file() else b"")


def cut_back(output: Path, checkpoint: Checkpoint) -> None:
    """Make the files in `output` those of a run that has come to the step of `checkpoint`."""
    folder, run, step = checkpoint.folder, checkpoint.manifest.run, checkpoint.manifest.step
    write_file(output / METRICS, (folder / METRICS).read_bytes())
    remove_tables(output, after=step)
    later = [path for path in checkpoints.checkpoints(output) if checkpoints.step_of(path) > step]
    later = [path for path in later if checkpoints.run_of(path) in (run, None)]
    for path in later:
        discard_folder(path)
    if later:
        logger.warning("removed, since the run resumes from %s: %s", folder, ", ".join(path.name for path in later))


def remove_tables(output: Path, after: int) -> None:
    """Remove the tables of completions that were written after that step."""
    for table in (output / "completions").glob("completions_*.parquet"):
        number = table.stem.removeprefix("completions_")
        if number.isdecimal() and int(number) > after:
            table.unlink()


def keep_tensorboard_with_the_run(trainer: GRPOTrainer) -> None:
    """What is logged before training too; transformers would begin a log in the working directory for that."""
    for callback in _tensorboards(trainer):
        if callback.logging_dir is None:
            callback.logging_dir = str(Path(trainer.args.output_dir) / default_logdir())


def tensorboard_folder(trainer: GRPOTrainer) -> str | None:
    """Of the run's log, below `output_dir`; `None` where there is none, or it is elsewhere."""
    output = Path(trainer.args.output_dir).absolute()
    folders = [Path(callback.logging_dir).absolute() for callback in _tensorboards(trainer)]
    return next((str(path.relative_to(output)) for path in folders if path.is_relative_to(output)), None)


def continue_tensorboard(trainer: GRPOTrainer, folder: str | None, step: int) -> None:
    """Continue the log in its folder, where what was logged after step `step` no longer counts."""
    for callback in _tensorboards(trainer) if folder else ():
        from torch.utils.tensorboard import SummaryWriter

        callback.logging_dir = str(Path(trainer.args.output_dir) / str(folder))
        callback.tb_writer = SummaryWriter(log_dir=callback.logging_dir, purge_step=step + 1)


def _tensorboards(trainer: GRPOTrainer) -> list[TensorBoardCallback]:
    return [c for c in trainer.callback_handler.callbacks if isinstance(c, TensorBoardCallback)]
