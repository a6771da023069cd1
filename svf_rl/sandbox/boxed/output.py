"""Whether a program printed the expected output."""


def outputs_match(got, expected):
    """
    Whether two texts are the same output, ignoring trailing white space in lines and empty lines at the end.

    All lines of both texts count, so an output that stops early is not a match.
    """
    return _lines(got) == _lines(expected)


def _lines(text):
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines
