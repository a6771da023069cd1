"""`svf-rl report`."""

import argparse

from svf_rl.cli.flags import Command


def _fill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN_DIR",
        help="output_dir of a training run, also of one that is running, or --out of an evaluation",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="default: RUN_DIR/report, for several runs runs/report; an earlier report is replaced",
    )


def _run(known: argparse.Namespace) -> None:
    from svf_rl.report.write import write_report

    print(write_report(known.runs, known.out))


REPORT = Command("report", "runs in Markdown with pictures, side by side", _fill, _run)
