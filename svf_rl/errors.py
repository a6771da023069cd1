"""The one exception type that the command line prints as a single line."""


class SVFError(ValueError):
    """Bad input from the user. The message is one line and says what to change."""
