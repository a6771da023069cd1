"""Why a model, a tokenizer, an adapter or a dataset could not be loaded, and what to do: one line for all commands."""

# ruff: noqa: PTH112, PTH113, PTH118  (os.path takes any text, where Path raises for one that is too long)
import os
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants, get_token, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from svf_rl.errors import SVFError, one_line

_AS_ADAPTER = "name its base model as the model, and {name} as adapter_path (svf-rl eval: --adapter)"


def loading_error(kind: str, name: str, error: BaseException, revision: str | None = None) -> SVFError:
    """
    The error to raise in place of `error`, which came from loading `name`.

    Args:
        kind (`str`): `"model"`, `"tokenizer"`, `"adapter"` or `"dataset"`.
        name (`str`): a folder, or a name on the Hub.
        error (`BaseException`): what the library raised; what it was caused by is looked at too.
        revision (`str`, *optional*): of the repository on the Hub.
    """
    if os.path.isdir(name):
        if kind == "model":
            check_no_adapter(name)
        return SVFError(_of_files(kind, name, error))
    name, causes = one_line(name), list(_causes(error))

    def caused_by(*types: type[BaseException]) -> bool:
        return any(isinstance(cause, types) for cause in causes)

    said = " ".join(map(str, causes))
    repository = "datasets/" if kind == "dataset" else ""
    page = f"{constants.ENDPOINT}/{repository}{name}"
    download = f"hf download {name}" + (f" --revision {revision}" if revision else "")
    download += " --repo-type dataset" if kind == "dataset" else ""
    # the type of a gated dataset's error is lost on the way
    if caused_by(GatedRepoError) or (kind == "dataset" and "is a gated dataset" in said):
        if get_token() is None:
            return SVFError(
                f"{kind} {name} is gated: accept its licence at {page} and log in with 'hf auth login' (or set "
                "HF_TOKEN)"
            )
        return SVFError(
            f"{kind} {name} is gated, and the account of this token may not read it: accept its licence at {page} with "
            "that account ('hf auth whoami' names it), or log in with another: 'hf auth login'"
        )
    if caused_by(RevisionNotFoundError):
        return SVFError(
            f"{kind} {name} has no revision {revision or 'main'} on the Hub: choose one of {page}/tree/main"
        )
    nowhere = f"{kind} {name} is neither a local folder nor {_A[kind]} that can be downloaded from the Hub"
    if caused_by(HFValidationError):
        return SVFError(f"{nowhere}, where names are NAME or OWNER/NAME: check it (working directory: {Path.cwd()})")
    if caused_by(RepositoryNotFoundError) or "exist on the Hub" in said:
        return SVFError(
            f"{nowhere}: the Hub has no {'dataset' if kind == 'dataset' else 'model'} {name}, or it is private: check "
            "the name, or log in with 'hf auth login' (or set HF_TOKEN)"
        )
    not_reached = caused_by(LocalEntryNotFoundError, HfHubHTTPError, HTTPError, ConnectionError)
    if constants.HF_HUB_OFFLINE and (not_reached or caused_by(OfflineModeIsEnabled)):
        return SVFError(
            f"{nowhere}: HF_HUB_OFFLINE is set, and it is not in the cache ({constants.HF_HUB_CACHE}): run "
            f"'{download}' where there is a network, or unset HF_HUB_OFFLINE"
        )
    if not_reached:
        status = next((cause.response.status_code for cause in causes if isinstance(cause, HfHubHTTPError)), None)
        answer = f"the Hub answers with status {status}" if status else f"the Hub ({constants.ENDPOINT}) is not reached"
        return SVFError(
            f"{nowhere}: {answer}, and it is not in the cache ({constants.HF_HUB_CACHE}): try again with a network, or "
            f"run '{download}' where there is one"
        )
    if kind == "model" and _is_adapter_on_the_hub(name, revision):
        return SVFError(f"{name} is an adapter and not a model: {_AS_ADAPTER.format(name=name)}")
    if caused_by(RemoteEntryNotFoundError) and kind == "model":
        return SVFError(f"{page} has no config.json: it is no model of transformers")
    return SVFError(_of_files(kind, name, error))


def check_no_adapter(name: str) -> None:
    """Raises `SVFError` where `name`, given as a model, is the folder of an adapter: transformers would load its base
    model with it."""
    adapter, model = (os.path.isfile(os.path.join(name, file)) for file in ("adapter_config.json", "config.json"))
    if adapter and model:
        raise SVFError(
            f"{name} holds a model and an adapter (adapter_config.json), and transformers would load the adapter with "
            "it: move the adapter to a folder of its own, which adapter_path can name"
        )
    if adapter:
        raise SVFError(f"{name} is the folder of an adapter and not a model: {_AS_ADAPTER.format(name=name)}")


_A = {"model": "a model", "tokenizer": "a tokenizer", "adapter": "an adapter", "dataset": "a dataset"}


def _of_files(kind: str, name: str, error: BaseException) -> str:
    if "trust_remote_code" in str(error):
        return (
            f"{name} comes with code of its own, which runs only where trust_remote_code is true: read that code, then "
            "give --trust_remote_code true (svf-rl eval and merge: --trust-remote-code)"
        )
    return f"no {kind} in {name}: {one_line(error)}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_adapter_on_the_hub(name: str, revision: str | None) -> bool:
    try:
        hf_hub_download(name, "adapter_config.json", revision=revision)
    except (OSError, ValueError, HTTPError):
        return False
    return True
