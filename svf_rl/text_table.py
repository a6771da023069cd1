"""Lines of plain text in aligned columns."""

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[dict[str, str]], left: Collection[str] = ()) -> str:
    """
    The rows under their headings, in columns as wide as they need to be.

    Args:
        rows (`Sequence[dict]`): texts by heading; columns come in the order in which headings are first met.
        left (`Collection[str]`, *optional*): the headings of columns that start at the left, as words do.
    """
    headings = list(dict.fromkeys(name for row in rows for name in row))
    widths = {name: max(len(name), *(len(row.get(name, "")) for row in rows)) for name in headings}
    lines = [
        "  ".join(
            text.ljust(widths[name]) if name in left else text.rjust(widths[name])
            for name, text in ((name, row.get(name, "")) for name in headings)
        ).rstrip()
        for row in [{name: name for name in headings}, *rows]
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
