"""Statistics of graded completions, and metrics built on them for Hugging Face `evaluate`.

    import evaluate
    from svf_rl.metrics import metric_path

    metric = evaluate.load(metric_path("verified_accuracy"))

Nothing is asked of the Hub: a metric is a folder of this package. To add one, copy the folder `verified_accuracy`.
"""

from pathlib import Path

from svf_rl.errors import SVFError


def metric_path(name: str) -> str:
    """The folder of a metric, as `evaluate.load` takes it. Raises `SVFError` for an unknown name."""
    # `evaluate` looks for a file of the folder's name
    folders = {path.stem: path.parent for path in Path(__file__).parent.glob("*/*.py") if path.stem == path.parent.name}
    if name not in folders:
        raise SVFError(f"unknown metric {name!r}: use one of {', '.join(sorted(folders))}")
    return str(folders[name])
