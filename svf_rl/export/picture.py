"""What a LoRA of each rank leaves of an adapter, as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from svf_rl.report.style import GREY, PALETTE, make_figure


class Point(Protocol):
    """One rank: see [`svf_rl.export.lora.OfRank`]."""

    @property
    def rank(self) -> int: ...
    @property
    def tail(self) -> float: ...
    @property
    def kl(self) -> float: ...


def draw_rank_curve(curve: Sequence[Point], rank: int, path: Path) -> None:
    """Above the norm of what is left of the change, below the divergence of the next tokens; a line at the `rank` that
    was written. Written to `path` (PNG)."""
    figure, (above, below) = make_figure(2, 2.2)
    ranks = [one.rank for one in curve]
    above.plot(ranks, [one.tail for one in curve], marker="o", color=PALETTE[0])
    above.set_ylabel("left of the change\n(norm)")
    above.set_ylim(0, 1.02)
    below.plot(
        [one.rank for one in curve if one.kl > 0], [one.kl for one in curve if one.kl > 0], marker="o", color=PALETTE[0]
    )
    below.set_yscale("log")
    below.set_ylabel("KL (nats a token)")
    below.set_xlabel(f"rank (the line: {rank}, which was written)")
    above.sharex(below)
    for axes in (above, below):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ranks, [str(one) for one in ranks])
        axes.minorticks_off()
        axes.axvline(rank, color=GREY, linestyle="--", linewidth=1)
    figure.savefig(path)
