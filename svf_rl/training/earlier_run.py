"""An output folder that holds a run already: it is refused, or emptied of what that run wrote and of nothing else."""

import contextlib
import shutil
from pathlib import Path

from svf_rl.errors import SVFError
from svf_rl.storage.folders import discard_folder
from svf_rl.training.checkpoints import RUN, WRITTEN, checkpoints, clear_leftovers, current_run, is_ours, remove_tables


def check_no_run(output: Path) -> None:
    """Raises `SVFError`, which names the ways on, where `output` holds a run, finished or not."""
    run = current_run(output)
    if run is None and not any(map(is_ours, checkpoints(output))):
        return
    state = "a finished run" if (output / "summary.json").is_file() else "a run that has not ended"
    raise SVFError(
        f"{output} holds {state}, which would be replaced: --resume continues it, another --output_dir keeps it, and "
        "--overwrite_output_dir removes it"
    )


def remove_run(output: Path) -> None:
    """Remove what runs wrote to `output`, where there was one; files of anyone else stay."""
    clear_leftovers(output)
    for checkpoint in filter(is_ours, checkpoints(output)):
        discard_folder(checkpoint)
    if current_run(output) is None:
        return
    remove_tables(output, after=-1)
    for log in output.glob("runs/*/events.out.tfevents.*"):
        log.unlink()
    shutil.rmtree(output / ".adapter.partial", ignore_errors=True)
    for name in (*WRITTEN, RUN):  # what says that the folder is a run's goes last
        (output / name).unlink(missing_ok=True)
    for folder in (*output.glob("runs/*"), output / "runs", output / "completions"):
        with contextlib.suppress(OSError):  # not there, a file, or not empty
            folder.rmdir()
