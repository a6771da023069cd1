"""`svf-rl decompose`."""

import argparse
from dataclasses import asdict, dataclass

from svf_rl.cli.flags import Command, add_flags, read_flags
from svf_rl.described import described
from svf_rl.errors import SVFError


@dataclass
class DecomposeArguments:
    """What of a model is decomposed, and where: those of [`svf_rl.svf.checkpoint.decompose_checkpoint`]."""

    targets: str = described("mlp", "mlp, attention, mlp+attention, or a regular expression")
    dtype: str | None = described(None, "type the model will be loaded in (default: that of the checkpoint)")
    device: str = described("cpu", "where to compute: cpu or cuda")
    revision: str | None = described(None, "branch, tag or commit on the Hub")
    trust_remote_code: bool = described(False, "run model code that comes from the Hub")


def _fill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="local folder or Hub name; 'quickstart' is the bundled model")
    add_flags(parser, DecomposeArguments)


def _run(known: argparse.Namespace) -> None:
    import torch

    from svf_rl.models.base import ModelArguments
    from svf_rl.svf.checkpoint import decompose_checkpoint

    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if known.device not in devices:
        raise SVFError(f"device {known.device!r} is not there: use {' or '.join(devices)}")
    model = ModelArguments(known.model)
    index = decompose_checkpoint(model.location, **asdict(read_flags(known, DecomposeArguments)))
    print(
        f"{len(index.modules)} matrices, {index.cached} of them cached before; {index.bytes / 1e6:.1f} MB of factors, "
        f"{index.seconds:.1f} s; index: {index.path}"
    )


DECOMPOSE = Command("decompose", "put the factors of a model's weights into the cache", _fill, _run)
