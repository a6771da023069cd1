"""The configuration of a model on the Hub, without its weights."""

from functools import cache

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from svf_rl.errors import SVFError

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
    page = f"{constants.ENDPOINT}/{name}"
    try:
        # asked once: a download would try five times where there is no network
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=_SECONDS)
        hf_hub_download(name, "config.json", revision=revision)
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set"
    except GatedRepoError as error:
        raise SVFError(
            f"model {name} is gated: accept its licence at {page} and log in with 'hf auth login'"
        ) from error
    except RepositoryNotFoundError as error:
        raise SVFError(
            f"the Hub has no model {name}, or it is private: check the name, or log in with 'hf auth login'"
        ) from error
    except RevisionNotFoundError as error:
        raise SVFError(f"model {name} has no revision {revision} on the Hub: change model_revision") from error
    except EntryNotFoundError as error:
        raise SVFError(f"{page} has no config.json: it is no model of transformers") from error
    except (HfHubHTTPError, HTTPError, OSError) as error:
        return f"the Hub cannot be reached ({' '.join(str(error).split())[:120]})"
    return ""
