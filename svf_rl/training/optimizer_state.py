"""The part of the trainer that writes the state of the optimizer, of the schedule and of chance, and reads it back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn
from trl import GRPOTrainer

from svf_rl.training.checkpoints import Manifest


class OptimizerState(GRPOTrainer):
    """What transformers does, where that writes too much or does not work."""

    _resumed: tuple[Path, Manifest] | None

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        with trained_alone(self.accelerator.unwrap_model(self.model)):
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        # transformers maps to `args.device`, which is `cpu:0` for several processes on the CPU and cannot be mapped to
        for part, name in ((self.optimizer, "optimizer.pt"), (self.lr_scheduler, "scheduler.pt")):
            part.load_state_dict(torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        assert self._resumed is not None
        if self._resumed[1].processes == self.args.world_size:
            super()._load_rng_state(checkpoint)
        else:  # there is no state for each process
            set_seed(self.args.seed + self.state.global_step, device_specific=True)


@contextmanager
def trained_alone(model: nn.Module) -> Iterator[None]:
    """Within it, `model.state_dict()` has the trained parameters alone. DeepSpeed puts it into its checkpoints, less
    what is frozen; but a frozen weight with two names, as a tied embedding, stays under the second."""
    trained = {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}

    def keep_trained(_: nn.Module, state: dict[str, Any], prefix: str, __: dict[str, Any]) -> None:
        for name in [name for name in state if name.removeprefix(prefix) not in trained]:
            del state[name]

    hook = model.register_state_dict_post_hook(keep_trained)
    try:
        yield
    finally:
        hook.remove()
