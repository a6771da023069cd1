"""Publishing an adapter: the files that mean something elsewhere, to the Hugging Face Hub or into a folder."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from svf_rl.errors import SVFError, one_line
from svf_rl.models.kinds import kind_of
from svf_rl.runs.hub import hub_errors
from svf_rl.runs.model_card import MARKER, render_model_card
from svf_rl.runs.provenance import check_base, find_base, looks_local, remove_paths
from svf_rl.runs.run_folder import read_adapter_config, read_metrics, read_summary
from svf_rl.runs.summary import RunSummary
from svf_rl.storage.folders import check_new, new_folder
from svf_rl.svf.expert import expert_folder
from svf_rl.svf.saved_config import WEIGHTS


@dataclass(frozen=True)
class Published:
    """Where the adapter is now (an address or a folder), the files there, and what a person should know."""

    where: str
    files: list[str]
    notes: list[str]


def publish(
    adapter: str, target: str, *, base_model: str | None = None, to_folder: bool = False, private: bool = False
) -> Published:
    """
    Put an adapter where others can load it: configuration, weights, model card and the summary of its run.

    Left out are checkpoints, logs, the trainer's arguments, and the tokenizer, which is the base model's. No file names
    a path of this machine.

    Args:
        adapter (`str`): the adapter's folder.
        target (`str`): `owner/name` on the Hub, or a folder: what begins with `.`, `/` or `~`, or is there.
        base_model (`str`, *optional*): the base model's name on the Hub, where it was loaded from a folder.
        to_folder (`bool`, *optional*, defaults to `False`): `target` is a folder whatever it looks like.
        private (`bool`, *optional*, defaults to `False`): a new repository on the Hub is private.

    Raises:
        SVFError: no adapter, a base model without a name elsewhere, a target that is taken, no token, no network.
    """
    folder = expert_folder(adapter)
    to_folder = to_folder or looks_local(target)
    path = Path(target).expanduser()
    if to_folder:
        check_new(path)
    elif "/" not in target:
        raise SVFError(
            f"{target} is not a valid target: name a repository as OWNER/{target}, or a folder as ./{target}"
        )
    files, notes = _files(folder, base_model, "." if to_folder else target)
    if to_folder:
        with new_folder(path) as staging:
            _write(files, folder, staging)
        return Published(str(path), sorted([*files, WEIGHTS]), notes)
    with hub_errors(target):
        validate_repo_id(target)
        url = HfApi().create_repo(target, private=private or None, exist_ok=True)
        _upload(files, folder, url.repo_id, "Adapter and model card")
    return Published(str(url), sorted([*files, WEIGHTS]), notes)


def push_run(
    folder: Path, summary: RunSummary, repository: str, message: str, token: str | None, revision: str | None
) -> CommitInfo:
    """
    Upload what [`publish`] does of a run that goes on, or has just ended.

    Args:
        folder (`Path`): The adapter's: the run's own, or that of a checkpoint.
        summary ([`RunSummary`]): Of the run, as far as it is known.
        repository (`str`): `owner/name` on the Hub, which is there.
        message (`str`): Of the commit.
        token (`str`, *optional*): Default: that of the machine.
        revision (`str`, *optional*): The branch.

    Raises:
        SVFError: as `publish`.
    """
    files, _ = _files(folder, None, repository, summary)
    with hub_errors(repository, token):
        return _upload(files, folder, repository, message, token, revision)


def _upload(
    files: Mapping[str, str],
    folder: Path,
    repository: str,
    message: str,
    token: str | None = None,
    revision: str | None = None,
) -> CommitInfo:
    with tempfile.TemporaryDirectory() as staging:
        _write(files, folder, Path(staging))
        return HfApi(token=token).upload_folder(
            repo_id=repository, folder_path=staging, commit_message=message, revision=revision
        )


def _files(
    folder: Path, base_model: str | None, location: str, summary: RunSummary | None = None
) -> tuple[dict[str, str], list[str]]:
    """The text of each file but the weights, and what a person should know. Everything is checked here."""
    config, summary = read_adapter_config(folder), summary or read_summary(folder)
    kind = kind_of(config)
    if kind.read_expert(folder, config) is None:
        kind.count_values(folder, config)  # reads the file: it is there, and whole
    if base_model is not None:
        try:
            validate_repo_id(base_model)
        except HFValidationError as error:
            raise SVFError(f"--base-model {base_model!r} is not a valid name on the Hub, such as OWNER/NAME") from error
    base = base_model or find_base(config, summary)
    name = check_base(base, str(folder), "give its name on the Hub as --base-model OWNER/NAME")
    published: dict[str, Any] = {**remove_paths(config), "base_model_name_or_path": name}
    files = {"adapter_config.json": _json(published)}
    notes = []
    if summary.recipe:
        summary = replace(summary, recipe={**summary.recipe, "model_name_or_path": name})
        files["summary.json"] = _json(remove_paths(summary.to_dict()))
    else:
        notes.append(f"{folder} has no summary.json of a run: the card says neither the task nor an accuracy")
    own = _own_card(folder, find_base(config, summary))
    if own is not None:
        notes.append("README.md is your own and was taken as it stands")
    files["README.md"] = own or render_model_card(summary, published, read_metrics(folder), location=location)
    return files, notes


def _own_card(folder: Path, base: str | None) -> str | None:
    """The text of a card that a person wrote. Those of PEFT and of TRL name the base model's folder here."""
    path = folder / "README.md"
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise SVFError(f"{path} cannot be read as text ({one_line(error)}): correct it, or remove it") from error
    from_library = "[More Information Needed]" in text or "fine-tuned version of [None]" in text
    local = base is not None and looks_local(base) and base in text
    return None if not text.strip() or MARKER in text or from_library or local else text


def _write(files: Mapping[str, str], folder: Path, staging: Path) -> None:
    for name, text in files.items():
        (staging / name).write_text(text, encoding="utf-8")
    shutil.copyfile(folder / WEIGHTS, staging / WEIGHTS)


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
