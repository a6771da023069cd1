"""How every picture looks: size, colours that colour-blind readers tell apart, where the legend stands."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/) less its yellow, which is faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("solid", "dashed", "dotted", "dashdot")
GREY = "#666666"
DIVERGING = "RdBu_r"

WIDTH = 7.5  # inches
DPI = 150

_SETTINGS: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "text.parse_math": False,  # a dollar sign in the name of a run is a dollar sign
}
_LONGEST_NAME = 28


def house_style() -> AbstractContextManager[None]:
    """Within it, figures are made in our style; the settings of the process are as before afterwards."""
    return matplotlib.rc_context(_SETTINGS)


def choose_look(place: int) -> dict[str, Any]:
    """Colour and dashes of the line number `place`: the palette first solid, then dashed, and so on."""
    return {"color": PALETTE[place % len(PALETTE)], "linestyle": DASHES[place // len(PALETTE) % len(DASHES)]}


def make_figure(panels: int = 1, panel_height: float = 3.0) -> tuple[Figure, list[Axes]]:
    """A figure of our width with `panels` axes below one another. Not pyplot's: it needs no display, and is freed by
    itself."""
    figure = Figure(figsize=(WIDTH, panels * panel_height), layout="constrained")
    return figure, list(figure.subplots(panels, 1, squeeze=False).flat)


def add_legend(figure: Figure, entries: Sequence[tuple[Artist, str]], alone: bool = False) -> None:
    """A legend outside of the data, in as many columns as the names leave room for; the figure grows by its height. One
    entry tells nothing apart: it is left out unless `alone`."""
    if len(entries) < 2 and not alone:
        return
    names = [shorten_name(name) for _, name in entries]
    columns = max(1, min(len(names), 108 // (max(map(len, names)) + 6)))
    rows = -(-len(names) // columns)
    figure.set_figheight(figure.get_figheight() + 0.22 * rows)
    options: dict[str, Any] = {"loc": "outside lower center", "ncols": -(-len(names) // rows)}
    figure.legend([artist for artist, _ in entries], names, **options)


def shorten_name(name: str) -> str:
    """The name as a picture has room for it: long ones lose their middle, and what no font shows is a question mark."""
    shown = "".join(character if character.isprintable() and ord(character) < 0x2000 else "?" for character in name)
    if len(shown) > _LONGEST_NAME:
        half = (_LONGEST_NAME - 3) // 2
        shown = f"{shown[:half]}...{shown[-half:]}"
    return f" {shown}" if shown.startswith("_") else shown  # matplotlib leaves names out that begin with "_"


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, `WIDTH · DPI` pixels wide."""
    with house_style():
        figure.savefig(path, dpi=DPI, facecolor="white", format="png")
