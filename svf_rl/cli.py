"""The console command `svf-rl`."""

import argparse
import sys
from collections.abc import Sequence

from svf_rl import __version__
from svf_rl.errors import SVFError, one_line_errors


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["train"]:  # its options are the keys of the recipe, which argparse does not know
        from svf_rl.train import main as train

        return train(given[1:])
    parser = argparse.ArgumentParser("svf-rl", description="Reinforcement learning on singular values.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("train", help="train from a recipe: svf-rl train RECIPE.yaml [--key value ...]", add_help=False)
    _add_decompose(commands)
    known = parser.parse_args(given)
    with one_line_errors(known.debug) as outcome:
        known.run(known)
    return outcome.status


def _add_decompose(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("decompose", help="put the factors of a model's weights into the cache")
    parser.add_argument("model", help="local folder or Hub name; 'quickstart' is the bundled model")
    parser.add_argument(
        "--targets", default="mlp", help="mlp, attention, mlp+attention, or a regular expression (default: mlp)"
    )
    parser.add_argument("--dtype", help="type the model will be loaded in (default: that of the checkpoint)")
    parser.add_argument("--device", default="cpu", help="where to compute: cpu or cuda (default: cpu)")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--trust-remote-code", action="store_true", help="run model code that comes from the Hub")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.set_defaults(run=_decompose)


def _decompose(known: argparse.Namespace) -> None:
    import torch

    from svf_rl.quickstart import model_path
    from svf_rl.svf.checkpoint import decompose_checkpoint

    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if known.device not in devices:
        raise SVFError(f"device {known.device!r} is not there: use {' or '.join(devices)}")
    model = str(model_path()) if known.model == "quickstart" else known.model
    index = decompose_checkpoint(
        model,
        known.targets,
        dtype=known.dtype,
        device=known.device,
        revision=known.revision,
        trust_remote_code=known.trust_remote_code,
    )
    print(
        f"{index.count} matrices, {index.cached} of them cached before; {index.bytes / 1e6:.1f} MB of factors, "
        f"{index.seconds:.1f} s; index: {index.path}"
    )


if __name__ == "__main__":
    sys.exit(main())
