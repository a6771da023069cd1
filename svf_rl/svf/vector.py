"""What an adapter stores for one matrix: a trained `z`, or the trained weights of a combination of experts."""

from collections.abc import Callable

from torch import Tensor, nn

from svf_rl.svf.combine import combine, normalize


class _InFloat32(nn.Module):
    """It stays fp32 when the model is cast: bf16 around 1 has steps of 2⁻⁷, more than `z` moves in a whole training
    run."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_InFloat32":
        super()._apply(keeping_type(fn), recurse)
        return self


class SVFVector(_InFloat32):
    """One trained vector."""

    def __init__(self, z: Tensor):
        super().__init__()
        self.weight = nn.Parameter(z)  # (r,)


class SVFCombination(_InFloat32):
    """
    A `z` that is computed: the combination of the fixed masks of `K` experts with trained weights.

    It takes the place of an adapter's vector, and its `weight` is read in the same way. It has `K` vectors and `alpha`,
    which the matrices of one group share.
    """

    masks: Tensor

    def __init__(self, masks: Tensor, alpha: nn.Parameter, form: str, normalized: bool):
        super().__init__()
        self.alpha = alpha  # (K,) fp32
        self.register_buffer("masks", masks, persistent=False)  # (K, r) fp32
        self._form, self._normalized = form, normalized

    @property
    def used_alpha(self) -> Tensor:
        """The weights `(K,)` as they act: divided by their sum where they are to be normalized."""
        return normalize(self.alpha) if self._normalized else self.alpha

    @property
    def weight(self) -> Tensor:
        """`z'` of shape `(r,)`, with a gradient to `alpha`."""
        return combine(self.masks, self.used_alpha, self._form)


def keeping_type(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`fn`, but where it would change the type of a tensor, it only moves it."""

    def move(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

    return move
