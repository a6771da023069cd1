"""Log-probabilities, entropy and exact divergence over the vocabulary, computed in chunks of tokens.

The policy's logits are `V` numbers for each token. They are computed for one chunk of tokens, used, dropped, and
computed again in the backward pass: the extra memory is one chunk × vocabulary, for sequences of any length.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

CHUNK = 256  # tokens; more does not make the matrix product faster


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to `hidden · Wᵀ` before the softmax: `softcap·tanh(scale·x / softcap) / temperature`."""

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    @classmethod
    def of(cls, config: PretrainedConfig, temperature: float) -> "LogitTransform":
        """Cohere multiplies logits by `logit_scale`, Granite divides them by `logits_scaling`, Gemma 2 soft-caps them.
        Greedy decoding (temperature 0) is trained at temperature 1."""
        text = config.get_text_config()

        def first(*names: str) -> Any:
            return next((value for name in names if (value := getattr(text, name, None))), None)

        scale = first("logit_scale", "lm_head_multiplier") or 1.0
        if text.model_type == "mpt":  # transformers does not read it there
            scale = 1.0
        scaling = first("logits_scaling", "logits_mup_width_multiplier")
        if scaling:
            scale = scaling if text.model_type == "hyperclovax" else 1 / scaling
        return cls(float(scale), first("final_logit_softcapping", "logits_soft_cap"), temperature or 1.0)

    def __call__(self, raw: Tensor) -> Tensor:
        """`raw` (n, V) in any floating type, to logits (n, V) in fp32."""
        logits = raw.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits / self.temperature if self.temperature != 1.0 else logits

    def backward(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """From the gradient of the logits (n, V) to that of `raw`."""
        if self.softcap is not None:
            gradient = gradient * (1 - (logits * self.temperature / self.softcap) ** 2)
        factor = self.scale / self.temperature
        return gradient * factor if factor != 1.0 else gradient


@dataclass(frozen=True)
class TokenStatistics:
    """For each token: log-probability under policy and reference, entropy of the policy, exact divergence. Each has
    shape `(n,)`. Gradients flow through all but `ref_logps`."""

    logps: Tensor
    ref_logps: Tensor | None
    entropy: Tensor
    kl: Tensor | None


def token_statistics(
    hidden: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    transform: LogitTransform,
    ref_hidden: Tensor | None = None,
    ref_head: tuple[Tensor, Tensor | None] | None = None,
    direction: str | None = None,
) -> TokenStatistics:
    """
    Args:
        hidden (`Tensor` of shape `(n, d)`): The policy's last hidden states, at the positions that predict `labels`.
        labels (`Tensor` of shape `(n,)`): The chosen tokens.
        weight (`Tensor` of shape `(V, d)`), bias (`Tensor` of shape `(V,)`, *optional*): The output layer.
        transform ([`LogitTransform`]): Turns the output of that layer into logits.
        ref_hidden (`Tensor` of shape `(n, d)`, *optional*): The reference's hidden states.
        ref_head (`tuple`, *optional*): The reference's output layer, where it differs from the policy's.
        direction (`str`, *optional*): Which exact divergence to compute: a key of `EXACT_KL`.
    """
    ref_weight, ref_bias = ref_head or (weight, bias)
    logps, entropy, ref_logps, kl = _TokenStatistics.apply(
        hidden, weight, bias, labels, ref_hidden, ref_weight.detach(), ref_bias, transform, direction
    )
    return TokenStatistics(logps, None if ref_hidden is None else ref_logps, entropy, kl if direction else None)


class _TokenStatistics(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        ref_hidden: Tensor | None,
        ref_weight: Tensor,
        ref_bias: Tensor | None,
        transform: LogitTransform,
        direction: str | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.save_for_backward(hidden, weight, bias, labels, ref_hidden, ref_weight, ref_bias)
        ctx.transform, ctx.direction = transform, direction
        logps, entropy, ref_logps, kl = (hidden.new_zeros(len(labels), dtype=torch.float32) for _ in range(4))
        for start in range(0, len(labels), CHUNK):
            chunk = slice(start, start + CHUNK)
            lp = _log_softmax(hidden[chunk], weight, bias, transform)
            logps[chunk] = lp.gather(1, labels[chunk, None])[:, 0]
            entropy[chunk] = -(lp.exp() * lp).sum(1)
            if ref_hidden is not None:
                lq = _log_softmax(ref_hidden[chunk], ref_weight, ref_bias, transform)
                ref_logps[chunk] = lq.gather(1, labels[chunk, None])[:, 0]
                if direction is not None:
                    kl[chunk] = EXACT_KL[direction].value(lp, lq)
        ctx.mark_non_differentiable(ref_logps)
        ctx.set_materialize_grads(False)
        return logps, entropy, ref_logps, kl

    @staticmethod
    def backward(
        ctx: Any, grad_logps: Tensor | None, grad_entropy: Tensor | None, _r: None, grad_kl: Tensor | None
    ) -> Any:
        hidden, weight, bias, labels, ref_hidden, ref_weight, ref_bias = ctx.saved_tensors
        transform: LogitTransform = ctx.transform
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        # summed up in fp32; autograd casts a gradient to the type of what it is of
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        for start in range(0, len(labels), CHUNK):
            chunk = slice(start, start + CHUNK)
            logits = transform(_raw(hidden[chunk], weight, bias))
            lp = logits.log_softmax(1)
            p = lp.exp()
            gradient = torch.zeros_like(p)  # of the logits
            if grad_logps is not None:  # onehot − p
                gradient = -grad_logps[chunk, None] * p
                gradient.scatter_add_(1, labels[chunk, None], grad_logps[chunk, None])
            if grad_entropy is not None:  # −p·(log p + H)
                gradient -= grad_entropy[chunk, None] * p * (lp - (p * lp).sum(1, keepdim=True))
            if ctx.direction is not None and grad_kl is not None:
                lq = _log_softmax(ref_hidden[chunk], ref_weight, ref_bias, transform)
                gradient += EXACT_KL[ctx.direction].gradient(grad_kl[chunk, None], p, lp, lq)
            gradient = transform.backward(gradient, logits).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[chunk] = gradient @ weight.to(gradient.dtype)
            if grad_weight is not None:
                grad_weight += gradient.T @ hidden[chunk]
            if grad_bias is not None:
                grad_bias += gradient.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None, None


def _raw(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(hidden.to(weight.dtype), weight, bias)  # (chunk, V)


def _log_softmax(hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: LogitTransform) -> Tensor:
    return transform(_raw(hidden, weight, bias)).log_softmax(1)


_FAR = -20.0


def _divergence(lp: Tensor, lq: Tensor) -> Tensor:
    """KL(p ‖ q) (n,) from log-probabilities (n, V), as Σ p·(d + e^(−d) − 1) with d = lp − lq.

    This equals Σ p·d, since p and q both sum to 1. No term of it is negative, so nothing cancels, and a small
    divergence keeps its digits in fp32. Where p is so much smaller that e^(−d) could overflow, its term is q in fp32.
    """
    difference = lp - lq
    near = lp.exp() * (difference + torch.expm1(-difference.clamp(min=_FAR)))
    return torch.where(difference < _FAR, lq.exp(), near).sum(1)


def _policy_ref_gradient(grad: Tensor, p: Tensor, lp: Tensor, lq: Tensor) -> Tensor:
    difference = lp - lq
    return grad * p * (difference - (p * difference).sum(1, keepdim=True))


@dataclass(frozen=True)
class ExactKL:
    """`value(lp, lq)` (n,) from the log-probabilities (n, V) of policy and reference; `gradient(grad, p, lp, lq)`
    (n, V) with respect to the policy's logits, for the incoming gradient `grad` (n, 1) and the probabilities `p`."""

    value: Callable[[Tensor, Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


EXACT_KL = {
    "policy_ref": ExactKL(_divergence, _policy_ref_gradient),
    "ref_policy": ExactKL(lambda lp, lq: _divergence(lq, lp), lambda grad, p, lp, lq: grad * (p - lq.exp())),
}
