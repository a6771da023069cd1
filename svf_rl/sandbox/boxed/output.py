"""Whether a program printed what it should have."""


def matches(got, expected):
    """
    Whether two texts are the same output: line by line without trailing white space, without empty lines at the end.

    All lines count on both sides, so an output that stops early is not a match.
    """
    return _lines(got) == _lines(expected)


def _lines(text):
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines
