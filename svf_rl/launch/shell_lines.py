"""Values that a shell script takes from the package."""

import shlex
from collections.abc import Mapping


def format_shell_lines(values: Mapping[str, str]) -> str:
    """`values` as `NAME=value` lines that a shell may evaluate, whatever they hold."""
    return "\n".join(f"{name}={shlex.quote(value)}" for name, value in values.items())
