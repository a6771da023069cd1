"""Checkpoints in the output folder of a run: each is there whole or not at all, and says by itself whether it still is.

A checkpoint is written under a hidden name, synced, and renamed. Its `manifest.json`, written last, has the size and
the digest of every file. What has no such manifest is somebody else's, whatever its name, and is left as it is.
"""

import contextlib
import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.storage.disk_errors import disk_errors
from svf_rl.storage.files import write_file
from svf_rl.storage.folders import discard_folder, move_files, publish_folder
from svf_rl.storage.json_files import read_json

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
RUN = ".run"
# What a run writes beside its checkpoints, and a folder of something else may hold.
WRITTEN = (
    METRICS, "summary.json", "README.md", "training_args.bin", "adapter_config.json", "adapter_model.safetensors",
    "chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
)  # fmt: skip


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is of: the run and the step, with what must be the same to resume from it."""

    run: str
    step: int
    processes: int
    parallelism: str
    resumable: bool
    settings: dict[str, Any]
    rows: dict[str, str]
    packages: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were read and found as they were written."""

    folder: Path
    manifest: Manifest


def checkpoint_folder(output: Path, step: int) -> Path:
    """`checkpoint-<step>` in the output folder of a run."""
    return output / f"checkpoint-{step}"


def is_ours(folder: Path) -> bool:
    """Whether a run of this package wrote `folder` as a checkpoint, sound or torn. Nothing else may be removed or
    replaced."""
    content = {} if folder.is_symlink() else read_manifest(folder)
    return isinstance(content.get("run"), str) and "files" in content and content.get("step") == step_of(folder)


def check_ours(output: Path, used: Sequence[str | None] = (), written: Sequence[str] = WRITTEN) -> None:
    """
    Raises `SVFError` where a run in `output` could remove or replace what no run wrote: a `checkpoint-N` without our
    manifest, files of other things, or what the run itself is made of.

    Args:
        output (`Path`): the output folder of the run, which need not be there.
        used (`Sequence[str]`, *optional*): the base model and the adapters that it starts from: folders, or names.
        written (`Sequence[str]`, *optional*): the files that the run is still to write.
    """
    remedy = "move it, or give another output_dir"
    for path in sorted(output.glob("checkpoint-*")):
        if step_of(path) >= 0 and not is_ours(path):
            raise SVFError(
                f"{path} is no checkpoint of a run of svf_rl ({MANIFEST} is not there or not ours): {remedy}"
            )
    there = [name for name in written if (output / name).exists()]
    if there and current_run(output) is None:
        raise SVFError(f"{output} holds {there[0]}, which no run wrote and this one would replace: {remedy}")
    root = output.resolve()
    for place in [Path(name).resolve() for name in used if name and Path(name).exists()]:
        inside = place.relative_to(root).parts if place.is_relative_to(root) else None
        if inside is not None and (not inside or is_ours(root / inside[0])):
            raise SVFError(f"the run starts from {place}, which lies in its output_dir and could be replaced: {remedy}")


def publish(partial: Path, folder: Path, manifest: Manifest) -> None:
    """Give the files in `partial` a manifest, bring them to the disk, and let them appear as `folder`. Raises
    `SVFError` where something else has that name."""
    if (folder.exists() or folder.is_symlink()) and not is_ours(folder):  # since the start
        raise SVFError(f"{folder} is there and is no checkpoint of a run of svf_rl: move it")
    files = {}
    for file in sorted(path for path in partial.rglob("*") if path.is_file()):
        files[file.relative_to(partial).as_posix()] = {"size": file.stat().st_size, "sha256": _digest(file)}
    text = json.dumps({**asdict(manifest), "files": files}, indent=1, default=str) + "\n"
    (partial / MANIFEST).write_text(text, encoding="utf-8")
    publish_folder(partial, folder)  # one that is there is torn, or of an earlier run


def read_checkpoint(folder: Path) -> Checkpoint:
    """
    The checkpoint in `folder`, every file of which is read and compared with its digest.

    Raises:
        SVFError: it is torn or was changed, or is not a checkpoint; in one line.
    """
    torn = f"{folder} is not a complete checkpoint"
    content = read_json(folder / MANIFEST, torn, {"files": dict})
    try:
        files = content.pop("files")
        manifest = Manifest(**{f.name: content[f.name] for f in fields(Manifest)})  # what other versions add is left
        for name, wanted in files.items():
            file = folder / name
            if file.stat().st_size != wanted["size"] or _digest(file) != wanted["sha256"]:
                raise SVFError(f"{torn}: {name} is not as it was written")
    except OSError as error:
        raise SVFError(f"{torn}: {error.filename}: {error.strerror}") from error
    except (TypeError, KeyError) as error:
        raise SVFError(f"{torn}: {MANIFEST} is damaged") from error
    if not manifest.resumable:
        raise SVFError(f"{folder} holds the adapter alone (save_only_model): a run cannot resume from it")
    return Checkpoint(folder, manifest)


def last_sound(output: Path) -> Checkpoint | None:
    """The checkpoint of the last step of the run in `output`. Torn ones are passed over with a warning, and so are
    those of an earlier run in the same folder."""
    run = current_run(output)
    for folder in reversed(checkpoints(output)):
        try:
            checkpoint = read_checkpoint(folder)
        except SVFError as error:
            _warn_once(f"skipped: {error}")
            continue
        if run is None or checkpoint.manifest.run == run:
            return checkpoint
        _warn_once(
            f"skipped: {folder} is of an earlier run, after which another began in {output}; "
            f"--resume_from_checkpoint {folder} resumes from it"
        )
    return None


def checkpoints(output: Path) -> list[Path]:
    """The checkpoints in `output`, torn ones too, by their step."""
    found = (path for path in output.glob("checkpoint-*") if path.is_dir() and step_of(path) >= 0)
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """The step after which a checkpoint was written, by its name; −1 where the name has none."""
    number = folder.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else -1


def prune(output: Path, limit: int | None, keep: Sequence[Path]) -> None:
    """
    Remove the oldest checkpoints until `limit` are left, those of earlier runs first.

    Args:
        output (`Path`): the output folder of the run.
        limit (`int`, *optional*): `save_total_limit`; without one nothing is removed.
        keep (`Sequence[Path]`): those that stay whatever the limit: the last and the best.
    """
    if not limit or limit < 0:
        return
    kept = {path.name for path in keep}
    run = current_run(output)
    found = sorted(filter(is_ours, checkpoints(output)), key=lambda path: run_of(path) == run)
    surplus = len(found) - max(limit, len(kept))
    for folder in [path for path in found if path.name not in kept][: max(0, surplus)]:
        discard_folder(folder)


def cut_back(output: Path, checkpoint: Checkpoint) -> None:
    """Make the files in `output` those of a run that has come to the step of `checkpoint`."""
    folder, run, step = checkpoint.folder, checkpoint.manifest.run, checkpoint.manifest.step
    write_file(output / METRICS, (folder / METRICS).read_bytes())
    remove_tables(output, after=step)
    later = [path for path in checkpoints(output) if step_of(path) > step and is_ours(path) and run_of(path) == run]
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


def clear_leftovers(output: Path) -> None:
    """Remove what a killed process had begun to write or to remove."""
    for left in output.glob(".checkpoint-*"):
        if left.suffix in (".partial", ".old") and step_of(left.with_name(left.stem[1:])) >= 0:
            shutil.rmtree(left, ignore_errors=True)


def current_run(output: Path) -> str | None:
    """The name of the run that was last begun in `output`, or `None`."""
    try:
        return (output / RUN).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def name_run(output: Path, name: str | None = None) -> str:
    """Note that a new run starts in `output`, or that the one called `name` resumes there. Returns the name."""
    name = name or uuid.uuid4().hex
    write_file(output / RUN, f"{name}\n")
    return name


@contextmanager
def adapter_folder(folder: Path) -> Iterator[Path]:
    """Where an adapter that is to be in `folder` is written: there, if it is of a checkpoint that is being made, else
    beside, from where each file moves in one step."""
    if folder.name.startswith(".checkpoint-"):
        yield folder
        return
    partial = folder / ".adapter.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with disk_errors(folder):
            yield partial
            move_files(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def run_of(folder: Path) -> str | None:
    """The run that a checkpoint is of; `None` where it does not say."""
    return read_manifest(folder).get("run")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint as it stands there, its files not looked at; empty where there is none."""
    with contextlib.suppress(SVFError):
        return read_json(folder / MANIFEST, "")
    return {}


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
