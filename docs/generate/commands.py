"""What `svf-rl COMMAND --help` prints."""

import contextlib
import io
import os


def command_help(*command: str) -> str:
    """The help of a command, in a block of text."""
    from svf_rl.cli import main

    printed = io.StringIO()
    width = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "90"
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([*command, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if width is not None:
            os.environ["COLUMNS"] = width
    return f"```text\n{printed.getvalue().strip()}\n```"
