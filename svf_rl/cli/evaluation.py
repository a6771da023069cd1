"""`svf-rl eval`."""

import argparse
from typing import Any

from svf_rl.cli.options import add_data, add_engine, evaluation_arguments, names, numbers
from svf_rl.errors import SVFError


def add_to(commands: "argparse._SubParsersAction[Any]") -> None:
    parser = commands.add_parser("eval", help="grade a model and its adapters on tasks")
    add = parser.add_argument
    add("model", help="local folder or Hub name; 'quickstart' is the bundled model")
    add(
        "--adapter",
        action="append",
        default=[],
        dest="adapters",
        metavar="PATH",
        help="a saved SVF or LoRA adapter, compared with the base; may be given several times",
    )
    add("--tasks", required=True, type=names, help="such as gsm8k,math or quickstart:choice; columns for your own data")
    add("--limit", type=int, help="only the first so many items of each task")
    add("--samples", type=int, default=1, help="completions an item (default: 1)")
    add("--temperature", type=float, help="default: 0, greedy; 0.8 with several samples")
    add("--top-p", type=float, default=1.0, help="default: 1.0")
    add("--k", type=numbers, help="the k of pass@k, as in 1,10 (default: 1 and --samples)")
    add("--out", help="folder of the results; a second call goes on there (default: runs/eval-MODEL)")
    add("--seed", type=int, default=0, help="of the samples (default: 0)")
    add_engine(parser, gpu_memory_utilization=0.85)
    add_data(parser)
    parser.set_defaults(run=_run)


def _run(known: argparse.Namespace) -> None:
    from svf_rl.train import quiet_libraries

    quiet_libraries()
    arguments = evaluation_arguments(known)
    try:
        from svf_rl.evaluation.run import evaluate  # takes seconds
        from svf_rl.evaluation.table import table

        results = evaluate(arguments)
    except KeyboardInterrupt as error:
        raise SVFError("interrupted; the same command goes on from here") from error
    print(table(results))
