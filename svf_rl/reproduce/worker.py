"""The process of a cell other than a training run:

    python -m svf_rl.reproduce.worker OUT/cells/NAME.json

It is one of its own so that the generator's memory is free again for the next cell.
"""

import sys
from pathlib import Path

from svf_rl.errors import SVFError, one_line_errors
from svf_rl.train import quiet_libraries


def main() -> int:
    """Returns the exit status: 1, after one line, for what went wrong."""
    quiet_libraries()
    with one_line_errors() as outcome:
        _work(Path(sys.argv[1]))
    return outcome.status


def _work(path: Path) -> None:
    from svf_rl.evaluation.run import evaluate
    from svf_rl.evaluation.table import table
    from svf_rl.reproduce.adaptations import adapt_to_unseen
    from svf_rl.reproduce.by_adapter import measure_changes, score_text
    from svf_rl.reproduce.cells import evaluation_arguments, read_result
    from svf_rl.reproduce.kept import drop_replaced

    record = read_result(path)
    if not record:
        raise SVFError(f"{path} does not exist")
    spec = record["spec"]
    drop_replaced(record["kind"], spec)
    match record["kind"]:
        case "evaluation":
            print(table(evaluate(evaluation_arguments(spec))))
        case "changes":
            measure_changes(spec)
        case "text":
            score_text(spec)
        case _:
            adapt_to_unseen(spec)


if __name__ == "__main__":
    sys.exit(main())
