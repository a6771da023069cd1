"""What `svf-rl reproduce` is asked for. Nothing slow is imported here."""

from dataclasses import dataclass
from pathlib import Path

from svf_rl.described import described
from svf_rl.errors import SVFError

PARTS = ("fine_tuning", "adaptation", "ablations", "probes")


@dataclass(frozen=True)
class ReproduceArguments:
    """
    What is made of a comparison, and how.

    Raises:
        SVFError: an unknown part, or a number of processes below 1.
    """

    out: str | Path | None = described(
        None, "folder of everything, where a second call resumes (default: runs/reproduce-NAME, or that of a raw.json)"
    )
    seeds: list[int] | None = described(None, "such as 0,1,2, for every part, in place of the file's")
    jobs: int | None = described(None, "processes at once (default: 2 on a CPU with as many cores, 1 with CUDA)")
    only: list[str] | None = described(None, f"some of {','.join(PARTS)} (default: all)")
    methods: list[str] | None = described(
        None, "train these alone: svf, lora, and variants by their names, such as 'svf,top 64' (default: all)"
    )
    launch: str | None = described(
        None, "starts training runs: 'accelerate launch --config_file FILE' (default: this Python)"
    )
    data_dir: str | None = described(None, "folder with a folder a benchmark (gsm8k, math, ...), in place of the Hub")
    dry_run: bool = described(False, "check everything without weights, print the plan, and stop")

    def __post_init__(self) -> None:
        for part in self.only or ():
            if part not in PARTS:
                raise SVFError(f"unknown part {part!r}: use some of {','.join(PARTS)}")
        if self.jobs is not None and self.jobs < 1:
            raise SVFError(f"--jobs must be at least 1, not {self.jobs}")
