"""What can go wrong with the Hugging Face Hub, as one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalTokenNotFoundError

from svf_rl.errors import SVFError, one_line


@contextmanager
def hub_errors(target: str, token: str | None = None) -> Iterator[None]:
    """Raise `SVFError` where there is no token to write to `target` with, and for what the Hub answers within."""
    if token is None and get_token() is None:
        raise SVFError(f"no Hugging Face token to write to {target} with: run 'hf auth login', or set HF_TOKEN")
    try:
        yield
    except (HFValidationError, LocalTokenNotFoundError) as error:
        raise SVFError(f"{target} on the Hub: {one_line(error)}") from error
    except HfHubHTTPError as error:
        raise SVFError(f"the Hub refuses {target}: {one_line(error)}; check the name and the token's rights") from error
    except (HTTPError, OSError) as error:
        raise SVFError(
            f"the Hub cannot be reached for {target} ({one_line(error)}): try again with a network"
        ) from error
