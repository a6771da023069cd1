"""`svf-rl decompose`."""

import argparse

from svf_rl.cli.flags import LazyParser
from svf_rl.errors import SVFError


def add_to(commands: "argparse._SubParsersAction[LazyParser]") -> None:
    parser = commands.add_parser("decompose", help="put the factors of a model's weights into the cache")
    add = parser.add_argument
    add("model", help="local folder or Hub name; 'quickstart' is the bundled model")
    add("--targets", default="mlp", help="mlp, attention, mlp+attention, or a regular expression (default: mlp)")
    add("--dtype", help="type the model will be loaded in (default: that of the checkpoint)")
    add("--device", default="cpu", help="where to compute: cpu or cuda (default: cpu)")
    add("--revision", help="branch, tag or commit on the Hub")
    add("--trust-remote-code", action="store_true", help="run model code that comes from the Hub")
    parser.set_defaults(run=_run)


def _run(known: argparse.Namespace) -> None:
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
        f"{len(index.modules)} matrices, {index.cached} of them cached before; {index.bytes / 1e6:.1f} MB of factors, "
        f"{index.seconds:.1f} s; index: {index.path}"
    )
