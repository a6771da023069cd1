"""The policy: what the trainer asks of a model, and the loss of a micro-batch (`losses/` has the mathematics)."""

import functools
import hashlib
import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from trl.models.utils import disable_gradient_checkpointing

from svf_rl.errors import SVFError
from svf_rl.losses import objective
from svf_rl.losses.token_logprobs import EXACT_KL, LogitTransform, TokenStatistics, token_statistics
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.svf import reference_mode, svf_layers
from svf_rl.svf.sharding import gather_parameters, is_sharded
from svf_rl.training.metrics_recorder import MetricsRecorder
from svf_rl.training.packing import counted, pack
from svf_rl.training.start_values import StartValues


def add_hidden_states_forward(model: PreTrainedModel) -> None:
    """
    Teach `model` the call `model(..., hidden_states_only=True)`, which returns the last hidden states
    (batch, length, d) and makes no logits. It goes through `forward`, so that wrappers (DDP, DeepSpeed) see the call.
    """
    original = model.forward
    # with the copy as `self` where a model is copied, and not with the one that was taught
    plain = getattr(original, "__func__", lambda _, *args, **kwargs: original(*args, **kwargs))

    @functools.wraps(type(model).forward)  # `generate` reads its signature
    def forward(self: PreTrainedModel, *args: Any, hidden_states_only: bool = False, **kwargs: Any) -> Any:
        if hidden_states_only:
            body = self.base_model if self.base_model is not self else getattr(self, "model", None)  # Llama 4's
            output = None if body is None else body(*args, use_cache=False, **kwargs)
            if output is None or not hasattr(output, "last_hidden_state"):
                raise SVFError(f"{type(self).__name__} gives no hidden states, of which the loss is made: use another")
            return output.last_hidden_state
        return plain(self, *args, **kwargs)

    model.forward = types.MethodType(forward, model)


def switch_off_dropout(model: nn.Module) -> None:
    """Of the model's own layers, not of its adapters: the generator has none, and a reference is the same each time."""
    for name, module in model.named_modules():
        if "lora_dropout" in name.split("."):
            continue
        for attribute, value in list(vars(module).items()):  # some models keep the share alone, for `F.dropout`
            if isinstance(value, float) and ("drop" in attribute or isinstance(module, nn.modules.dropout._DropoutNd)):
                setattr(module, attribute, 0.0)


def hidden_states(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, completion_length: int) -> Tensor:
    """
    The hidden states that predict the last `completion_length` tokens.

    Args:
        input_ids, attention_mask (`Tensor` of shape `(B, P + T)`): Left-padded prompts and right-padded completions.
        completion_length (`int`): `T`.

    Returns:
        `Tensor` of shape `(B, T, d)`.
    """
    # Positions count real tokens, as they do in the generator; models with learnt positions need it.
    positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
    states = model(input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, hidden_states_only=True)
    return states[:, -completion_length - 1 : -1]


def arrange(batch: dict[str, Tensor], packing: str, model: Any) -> Callable[[nn.Module], Tensor]:
    """
    The rows that a micro-batch is computed in.

    Args:
        batch (`dict`): `prompt_ids`, `prompt_mask` (B, P), `completion_ids`, `completion_mask` and where tools wrote a
            part of the completions `tool_mask` (B, T).
        packing (`str`): A value of `train_packing`.
        model (`nn.Module`): For which, unwrapped.

    Returns:
        From a model, wrapped or not, the hidden states `(n, d)` that predict the tokens that count, row by row.
    """
    if packing != "none":
        return pack(batch, packing == "prompt", model).hidden_states
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)  # (B, P + T)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    length, counts = batch["completion_ids"].shape[1], counted(batch).bool()
    return lambda model: hidden_states(model, ids, attention, length)[counts]


def output_layer(model: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight (V, d) and bias (V,) of the layer that makes the logits. Where ZeRO-3 holds them these are whole copies,
    since the loss computes with them outside of the layer's own forward and backward."""
    layer = model.get_output_embeddings()
    weight, bias = layer.weight, getattr(layer, "bias", None)
    if not is_sharded(weight):
        return weight, bias
    if weight.requires_grad:
        raise SVFError("the output layer cannot be trained under ZeRO-3: take it out of modules_to_save")
    with gather_parameters([weight] if bias is None else [weight, bias]):
        return weight.detach().clone(), None if bias is None else bias.detach().clone()


def reference(model: Any, start: StartValues | None = None) -> AbstractContextManager[None]:
    """Within it, `model` (unwrapped) is the reference policy of the KL term: with the values of its `start`, or the
    base model."""
    if start is not None:
        return start.in_place()
    return reference_mode(model) if svf_layers(model) else model.disable_adapter()


def trainable_digest(model: nn.Module) -> str:
    """Hex digest of every trained value: it changes exactly when a generator needs new weights."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        if parameter.requires_grad:
            with gather_parameters([parameter]):
                digest.update(parameter.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy())
    return digest.hexdigest()


def check_processes_agree(digest: str, step: int) -> None:
    """Compare this process's [`trainable_digest`] after `step` with the others'; all processes call it together. Raises
    `SVFError`, on each of them, where two differ: from there on they would only drift apart."""
    digests = gather_object([digest])
    for process, other in enumerate(digests):
        if other != digests[0]:
            raise SVFError(
                f"after step {step} process {process} has other trained values than process 0: resume from the last "
                "checkpoint, and look for a process with other hardware, packages or data"
            )


@torch.no_grad()
def multiplier_statistics(model: nn.Module) -> dict[str, float]:
    """Mean, deviation, smallest and largest multiplier of the singular values, by kind of module (`gate_proj`, ...)."""
    kinds: dict[str, list[Tensor]] = {}
    for name, layer in svf_layers(model).items():
        with gather_parameters(layer.svf_z.parameters()):
            m = layer.active_multiplier()
            m = None if m is None else m.clone()  # it may be `z` itself
        if m is not None:
            kinds.setdefault(name.rpartition(".")[2], []).append(m)
    statistics: dict[str, float] = {}
    for kind, parts in kinds.items():
        m = torch.cat(parts)
        values = {"mean": m.mean(), "std": m.std(correction=0), "min": m.min(), "max": m.max()}
        statistics |= {f"z/{kind}/{name}": value.item() for name, value in values.items()}
    return statistics


@dataclass(frozen=True)
class PolicyLoss:
    """The objective that `args` describe; `recorder` gets what is measured on the way."""

    args: SVFReinforceConfig
    accelerator: Accelerator
    recorder: MetricsRecorder
    transform: LogitTransform
    packing: str
    """As `train_packing` says, or `none` where the model cannot be packed."""
    start: StartValues | None = None
    """The reference policy, where it is not the base model."""

    def __call__(self, model: Any, batch: dict[str, Any]) -> Tensor:
        """
        The loss of one of the micro-batches that add up to a step.

        Args:
            model (`nn.Module`): As the trainer wrapped it.
            batch (`dict`): `prompt_ids`, `prompt_mask` (B, P), `completion_ids`, `completion_mask` (B, T), `advantages`
                (B,), `sequences` and `tokens` (scalars: those of the whole step that count), and where there are such
                `tool_mask`, `sampling_per_token_logps` (B, T).

        Returns:
            Scalar `Tensor`.
        """
        args, mask = self.args, counted(batch)  # (B, T)
        needs_kl = args.beta != 0 and args.kl_placement == "loss"
        statistics = self.statistics(model, batch, needs_kl)
        logps = _scatter(statistics.logps, mask)  # (B, T)
        weights, sampling_logps = None, batch.get("sampling_per_token_logps")
        if sampling_logps is not None:
            difference = (logps.detach() - sampling_logps).abs()[mask.bool()]
            self.recorder.add_mean("sampling/logp_difference", difference[~difference.isnan()])
            if args.vllm_importance_sampling_correction:
                weights = objective.compute_importance_weights(
                    logps,
                    sampling_logps,
                    mask,
                    args.vllm_importance_sampling_mode,
                    args.vllm_importance_sampling_clip_min,
                    args.vllm_importance_sampling_clip_max,
                )
                self.recorder.add_mean("sampling/importance_weight", weights.expand_as(mask)[mask.bool()])
        kl = None
        if needs_kl:
            token_kl = self._token_kl(statistics)  # (n,)
            self.recorder.add_mean("kl", token_kl)
            kl = _scatter(token_kl, mask)
        self.recorder.add_mean("entropy", statistics.entropy)
        loss = objective.reinforce_loss(
            logps, batch["advantages"], mask, weights, kl, args.beta, args.loss_reduction, float(batch["sequences"])
        )
        if args.entropy_coef:
            loss = loss + objective.entropy_bonus(statistics.entropy, args.entropy_coef, float(batch["tokens"]))
        # DDP divides by the processes, and nothing by the accumulation steps (TRL turns that off): micro-batches add up
        return loss * self.accelerator.num_processes

    def statistics(self, model: Any, batch: dict[str, Any], with_reference: bool) -> TokenStatistics:
        """Statistics of the completion tokens that count, `(n,)` each, row by row."""
        args, counts = self.args, counted(batch).bool()
        unwrapped = self.accelerator.unwrap_model(model)
        states = arrange(batch, self.packing, unwrapped)
        # the reference first: what its pass needs for a moment is then not added to what the policy's keeps
        ref_hidden = ref_head = None
        if with_reference:
            checkpointing = disable_gradient_checkpointing(unwrapped, args.gradient_checkpointing_kwargs)
            with torch.no_grad(), reference(unwrapped, self.start), checkpointing:
                ref_hidden = states(unwrapped)
                # under ZeRO-3 nobody trains it, and a second copy would be gathered
                ref_head = None if is_deepspeed_zero3_enabled() else _detached(*output_layer(unwrapped))
        hidden = states(model)  # (n, d)
        weight, bias = output_layer(unwrapped)
        direction = args.kl_type if args.kl_type in EXACT_KL and with_reference else None
        statistics = token_statistics(
            hidden, batch["completion_ids"][counts], weight, bias, self.transform, ref_hidden, ref_head, direction
        )
        if args.objective == "next_token":
            self.recorder.add_mean("cross_entropy", -statistics.logps)
        return statistics

    @torch.no_grad()
    def sequence_kl(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """`(B,)` divergence of each completion that was generated, for the reward, a micro-batch at a time."""
        parts, size = [], self.args.per_device_train_batch_size
        for start in range(0, len(batch["completion_ids"]), size):
            part = {key: values[start : start + size] for key, values in batch.items()}
            token_kl = self._token_kl(self.statistics(model, part, with_reference=True))
            self.recorder.add_mean("kl", token_kl)
            mask = counted(part)
            parts.append(objective.reduce_tokens(_scatter(token_kl, mask), mask, self.args.loss_reduction))
        return torch.cat(parts)

    def _token_kl(self, statistics: TokenStatistics) -> Tensor:
        if statistics.kl is not None:
            return statistics.kl
        assert statistics.ref_logps is not None
        return objective.estimate_kl(statistics.logps, statistics.ref_logps, self.args.kl_type)


def _detached(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Tensors that stay what they are when a trained output layer gets its own values back."""
    return weight.detach(), None if bias is None else bias.detach()


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    """`(n,)` values of the tokens that count, to `(B, T)` with 0 elsewhere; the graph stays whole where `n` is 0."""
    return values.new_zeros(mask.shape).masked_scatter(mask.bool(), values)
