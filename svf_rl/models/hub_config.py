"""The configuration of a model on the Hub, without its weights."""

from functools import cache

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from svf_rl.errors import one_line
from svf_rl.storage.loading_errors import loading_error

_SECONDS = 10.0


@cache
def fetch_config(name: str, revision: str | None = None) -> str:
    """
    Bring `config.json` of a model, and nothing else, from the Hub to the cache of this machine.

    Returns:
        `str`: empty, or in words why the Hub could not be asked.

    Raises:
        SVFError: the Hub says that there is no such file, or does not give it without more.
    """
    try:
        # asked once: a download would try five times where there is no network
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=_SECONDS)
        hf_hub_download(name, "config.json", revision=revision)
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set"
    except (
        GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError, HFValidationError
    ) as error:  # fmt: skip
        raise loading_error("model", name, error, revision) from error
    except (HfHubHTTPError, HTTPError, OSError) as error:
        return f"the Hub cannot be reached ({one_line(error)})"
    return ""
