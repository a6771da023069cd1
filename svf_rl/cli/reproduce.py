"""`svf-rl reproduce`."""

import argparse

from svf_rl.cli.flags import Command, add_flags, read_flags
from svf_rl.reproduce.arguments import ReproduceArguments


def _fill(parser: argparse.ArgumentParser) -> None:
    text = "a YAML file, or a name that svf-rl recipes lists"
    parser.add_argument("recipe", nargs="?", default="reproduce/quickstart", help=text)
    add_flags(parser, ReproduceArguments)


def _run(known: argparse.Namespace) -> None:
    arguments = read_flags(known, ReproduceArguments)
    from svf_rl.reproduce.run import reproduce

    reproduce(known.recipe, arguments)


REPRODUCE = Command("reproduce", "the comparison of Transformer², as tables and pictures", _fill, _run)
