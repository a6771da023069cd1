"""Before the first update: the log-probabilities that the loss computes are the model's own, and the generator's.

Both are compared with trained values that have moved a little, since a generator that never gets them still agrees at
the start, where they change nothing.
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled

from svf_rl.episodes.environments import NO_PROMPT
from svf_rl.errors import SVFError
from svf_rl.generation import Sampling
from svf_rl.losses.token_logprobs import LogitTransform, token_statistics
from svf_rl.svf.vector import SVFVector
from svf_rl.training.packing import hindrance
from svf_rl.training.policy import arrange, output_layer

if TYPE_CHECKING:
    from svf_rl.training.trainer import SVFReinforceTrainer

# Mean difference of log-probabilities, in nats, that is taken for rounding, by the type of the model: at most, and
# where the trained values move them by nothing. Between kernels an 8B model in bf16 differs by .05 to .08, tiny ones in
# fp32 by less than .001.
_ROUNDING = {torch.float32: (0.02, 0.002)}
_ROUNDING_HALF = (0.3, 0.15)
_FOLLOWED = 0.25  # share of what the trained values move that may be missing
# How far the trained values are moved, as a share of their size: the first of these that changes the log-probabilities
# by at most so many nats a token. A model that says nothing sensible any more multiplies what is rounded.
_MOVES, _MOST = (0.2, 0.1, 0.05, 0.025, 0.0125), 2.0
_PROMPT, _TOKENS = 64, 8

Tokens = Sequence[list[int]]

logger = logging.getLogger(__name__)


def check_start(trainer: "SVFReinforceTrainer", ask_generator: bool) -> None:
    """
    Raises `SVFError`, on all processes, where what would be trained is not what the model says or, with
    `ask_generator`, what the generator answers. Nothing is drawn from the process's random numbers, and the trained
    values are afterwards what they were.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    prompts, training = _prompts(trainer), model.training
    given = [list(itertools.islice(itertools.cycle(prompt), _TOKENS)) for prompt in prompts]
    model.eval()
    try:
        with torch.no_grad(), trainer.compute_loss_context_manager():
            start = _model_logps(model, prompts, given)
            share = next((s for s in _MOVES if _change(model, s, prompts, given, start) <= _MOST), _MOVES[-1])
            with _moved(model, share):
                moved = _model_logps(model, prompts, given)
                _check_packing(trainer, model, prompts)
                _check_loss(trainer, model, prompts, given, moved)
                if ask_generator:
                    _check_generator(trainer, model, prompts, given, _difference(start, moved))
    finally:
        model.train(training)
    if ask_generator:
        trainer.generator.sync(model)


def _check_loss(trainer: "SVFReinforceTrainer", model: Any, prompts: Tokens, given: Tokens, own: list[float]) -> None:
    difference = _difference(_loss_logps(trainer, model, prompts, given), own)
    if _is_large(difference, model):
        raise SVFError(
            f"{_name(model)} cannot be trained here: hidden states times output layer, of which the loss is made, do "
            f"not give the model's own log-probabilities ({difference:.2g} nats a token off); use another model"
        )


def _check_packing(trainer: "SVFReinforceTrainer", model: Any, prompts: Tokens) -> None:
    """Pads the rows of updates, and says so, where hidden states of packed rows would not be those of padded ones."""
    if trainer.loss.packing == "none":
        return
    tokens = itertools.cycle(prompts[-1] + prompts[0])
    completions = [list(itertools.islice(tokens, count)) for count in (_TOKENS, _TOKENS - 3, _TOKENS, _TOKENS)]
    batch = _batch(trainer, [prompts[0]] * 3 + [prompts[-1]], completions)
    found = gather_object([hindrance(model) or _packing_error(model, batch)])
    reason = next(filter(None, found), None)  # processes decide the same
    if reason is not None:
        if trainer.is_world_process_zero():
            logger.warning("updates are made of padded rows, without train_packing: %s", reason)
        trainer.loss = replace(trainer.loss, packing="none")


def _packing_error(model: Any, batch: dict[str, Tensor]) -> str | None:
    padded = arrange(batch, "none", model)(model)  # (n, d)
    rows = [{key: values[i : i + 1] for key, values in batch.items()} for i in range(len(batch["prompt_ids"]))]
    alone = torch.cat([arrange(row, "none", model)(model) for row in rows])
    try:
        packed = arrange(batch, "prompt", model)(model)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):  # what is done with a mask it cannot read
        return "the model takes no mask of tokens by tokens"

    def error(states: Tensor) -> float:
        return ((states - padded).float().norm(dim=1) / padded.float().norm(dim=1)).mean().item()

    # rounding is measured, since it grows with the depth of a model; in bf16 one token may go to another expert
    least = 1e-4 if padded.dtype == torch.float32 else 2e-2
    found, allowed = error(packed), max(4 * error(alone), least)
    return None if found <= allowed else f"hidden states would be off by {found:.1g} of their size"


def _check_generator(trainer: "SVFReinforceTrainer", model: Any, prompts: Tokens, given: Tokens, moved: float) -> None:
    """Compares what it says of given tokens, which were `moved` so much, and of its own greedy ones, which it writes
    one after the other."""
    generator = trainer.generator
    generator.sync(model)
    scores = generator.loglikelihood(prompts, given)
    difference = _difference(_loss_logps(trainer, model, prompts, given), [value for row in scores for value in row])
    follows = not _is_large(difference, model, moved)
    completions = generator.generate(prompts, Sampling(_TOKENS, temperature=0.0), [0] * len(prompts))
    chosen = [completion.token_ids for completion in completions]
    # transformers tells no log-probabilities: there a greedy token must be the likeliest
    likeliest = [row.max(1).values.tolist() for row in _logps_in_place(model, prompts, chosen)]
    theirs = [completion.logprobs or best for completion, best in zip(completions, likeliest, strict=True)]
    greedy = _difference(_loss_logps(trainer, model, prompts, chosen), [value for row in theirs for value in row])
    if not follows or _is_large(greedy, model):
        remedy = "use another model"
        if trainer.args.use_vllm:
            remedy = "set use_vllm: false, or where the weights were changed after loading save the model and load that"
        raise SVFError(
            f"the generator does not answer as {_name(model)} does once its weights are updated "
            f"({max(difference, greedy, key=_nan_first):.2g} nats a token off): {remedy}"
        )


def _prompts(trainer: "SVFReinforceTrainer") -> list[list[int]]:
    """Two, of different lengths where there are as many tokens, shortened by what follows them: they fit."""
    rows = list(itertools.islice(trainer.train_dataset, 2))
    prompts, names = [row.get("prompt", NO_PROMPT) for row in rows], trainer.episodes.toolbox.names(rows)
    ids = [ids[_TOKENS:] or ids for ids in trainer.tokenize(prompts, names)]
    return [ids[0][-_PROMPT:], ids[-1][-_PROMPT // 2 :]]


class OnTrainBegin(TrainerCallback):
    """Calls `act` when the model is in its place and no step was made."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._act()


@contextmanager
def _moved(model: nn.Module, share: float) -> Iterator[None]:
    """Within it, every trained value is off by that share of the size of its tensor's, of what is around 0 at least of
    what is usual: a share of little, where a run starts near the base model, would drown in rounding. Where ZeRO-3 has
    shared them out they stay."""
    trained = {} if is_deepspeed_zero3_enabled() else {n: p for n, p in model.named_parameters() if p.requires_grad}
    saved = {name: parameter.detach().clone() for name, parameter in trained.items()}
    around_0 = {id(module.weight) for module in model.modules() if isinstance(module, SVFVector) and module.decays_well}
    generator = torch.Generator().manual_seed(0)
    for name, parameter in trained.items():
        size, usual = parameter.float().square().mean().sqrt().item(), 1.0 if parameter.ndim == 1 else 0.1
        if size == 0 or id(parameter) in around_0 or ".lora_B." in name:
            size = max(size, usual)
        parameter += share * size * torch.randn(parameter.shape, generator=generator).to(parameter)
    try:
        yield
    finally:
        for name, parameter in trained.items():
            parameter.copy_(saved[name])


def _change(model: Any, share: float, prompts: Tokens, given: Tokens, start: list[float]) -> float:
    """By how much the trained values change the log-probabilities once they are off by that share."""
    with _moved(model, share):
        return _difference(start, _model_logps(model, prompts, given))


def _loss_logps(trainer: "SVFReinforceTrainer", model: Any, prompts: Tokens, completions: Tokens) -> list[float]:
    """Of each token of the completions, row by row, as the loss computes them: from hidden states."""
    batch = _batch(trainer, prompts, completions)
    hidden = arrange(batch, trainer.loss.packing, model)(model)
    labels, transform = batch["completion_ids"][batch["completion_mask"].bool()], LogitTransform.of(model.config, 1.0)
    return token_statistics(hidden, labels, *output_layer(model), transform).logps.tolist()


def _batch(trainer: "SVFReinforceTrainer", prompts: Tokens, completions: Tokens) -> dict[str, Tensor]:
    """As the loss takes it."""
    from svf_rl.episodes.rollout import Rollout

    texts = [""] * len(prompts)
    rollout = Rollout(texts, list(prompts), list(completions), list(texts), [True] * len(prompts))
    return rollout.tensors(trainer._tokenizer.pad_token_id, trainer.accelerator.device)


def _model_logps(model: Any, prompts: Tokens, completions: Tokens) -> list[float]:
    """The same by the model's own logits."""
    rows = zip(_logps_in_place(model, prompts, completions), completions, strict=True)
    chosen = [row.gather(1, torch.tensor(ids, device=row.device)[:, None])[:, 0] for row, ids in rows]
    return torch.cat(chosen).tolist()


def _logps_in_place(model: Any, prompts: Tokens, completions: Tokens) -> Iterator[Tensor]:
    """`(T, V)` in the place of each token of a completion, by the model's own logits, a row at a time, unpadded."""
    device = next(model.parameters()).device
    for prompt, completion in zip(prompts, completions, strict=True):
        logits = model(input_ids=torch.tensor([prompt + completion], device=device)).logits
        yield logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)


def _difference(ours: Sequence[float], others: Sequence[float]) -> float:
    """Mean over the tokens, the largest of all processes; NaN where there is one."""
    own = sum(abs(a - b) for a, b in zip(ours, others, strict=True)) / len(ours)
    return max(gather_object([own]), key=_nan_first)


def _nan_first(value: float) -> tuple[bool, float]:
    return math.isnan(value), value


def _is_large(difference: float, model: Any, moved: float = math.inf) -> bool:
    most, least = _ROUNDING.get(model.get_input_embeddings().weight.dtype, _ROUNDING_HALF)
    if getattr(model.get_base_model(), "hf_quantizer", None) is not None:  # bitsandbytes rounds a batch as a whole
        most, least = _ROUNDING_HALF
    return not difference <= min(most, least + _FOLLOWED * moved)


def _name(model: Any) -> str:
    base = model.get_base_model()
    return base.config._name_or_path or type(base).__name__
