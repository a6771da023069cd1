"""`svf-rl reproduce`."""

import argparse

from svf_rl.cli.flags import Command, split_integers, split_names


def _fill(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("recipe", nargs="?", default="reproduce/quickstart", help="a YAML file, or a name that svf-rl recipes lists")
    add("--out", help="folder of everything, where a second call resumes (default: runs/reproduce-NAME)")
    add("--seeds", type=split_integers, help="such as 0,1,2, in place of the file's")
    add("--jobs", type=int, help="processes at once (default: 2 on a CPU with as many cores, 1 with CUDA)")
    add("--only", type=split_names, help="some of fine_tuning,adaptation,ablations (default: all)")
    add("--launch", help="starts training runs: 'accelerate launch --config_file FILE' (default: this Python)")
    add("--data-dir", help="folder with a folder a benchmark (gsm8k, math, ...), in place of the Hub")
    add("--dry-run", action="store_true", help="check everything without weights, print the plan, and stop")


def _run(known: argparse.Namespace) -> None:
    from svf_rl.reproduce.comparison import PARTS
    from svf_rl.reproduce.run import reproduce

    reproduce(
        known.recipe,
        known.out,
        seeds=known.seeds,
        jobs=known.jobs,
        parts=known.only or PARTS,
        launcher=known.launch,
        data_dir=known.data_dir,
        dry_run=known.dry_run,
    )


REPRODUCE = Command("reproduce", "the comparison of Transformer², as tables and pictures", _fill, _run)
