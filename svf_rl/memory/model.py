"""The model of a recipe without its weights: bytes by kind of tensor, and activations, from the configuration alone."""

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PretrainedConfig

from svf_rl.errors import SVFError, one_line
from svf_rl.losses.token_logprobs import EXACT_KL
from svf_rl.memory.arithmetic import TensorBytes, optimizer_bytes
from svf_rl.memory.trace import Activations, Batch, decoder_layers, trace
from svf_rl.settings.dry_run_model import find_adapted_matrices
from svf_rl.settings.recipe import Recipe
from svf_rl.svf.targets import fused_experts, logical_weight
from svf_rl.training.packing import PackedRows, hindrance, pack_tokens
from svf_rl.training.policy import add_hidden_states_forward

# Where all layers are alike, activations of this many are counted: each further one adds as much as the last of them.
_TRACED = 3


class PlannedModel:
    """
    The adapted model of a recipe on fake tensors, which have shapes and types but no memory.

    Raises:
        SVFError: its dry run refuses the recipe, or the model's or an expert's configuration is not on this machine.
    """

    def __init__(self, recipe: Recipe):
        self.notes: list[str] = []
        adapted = find_adapted_matrices(recipe, self.notes)
        if adapted is None or adapted.config is None:
            name = f"model {recipe.model.model_name_or_path}"
            what = self.notes[-1].rpartition(":")[0] if adapted is None else f"{name} is not on this machine"
            raise SVFError(
                f"{what}: run this where the Hub can be reached, or name a folder that holds config.json: "
                "--model_name_or_path FOLDER"
            )
        self.recipe, self.config, self.kind = recipe, adapted.config, adapted.kind
        text_config = adapted.config.get_text_config()
        self.positions = getattr(text_config, "max_position_embeddings", None)
        self.dtype = _dtype(recipe, adapted.config, self.notes)
        self.itemsize = self.dtype.itemsize
        self._has_multipliers = getattr(adapted.peft_config, "is_multiplier", False)
        self._fake = FakeTensorMode()
        with torch.device("meta"):
            model = _base(recipe, adapted.config, self.dtype)
            self.base_parameters = sum(p.numel() for p in model.parameters())
            base = sum(p.nbytes for p in model.parameters())
            buffers = sum(b.nbytes for b in model.buffers())
            head = model.get_output_embeddings()
            self.output_layer = 0 if head is None else head.weight.nbytes
            self.vocabulary = 0 if head is None else head.weight.shape[0]
            modules = dict(model.named_modules())
            missing = [name for name in adapted.matrices if name not in modules]
            if missing:
                raise SVFError(f"the experts adapt {missing[0]}, which {recipe.model.location} does not have")
            weights = {name: logical_weight(modules[name]) for name in adapted.matrices}
            self.shapes = {name: (weight.shape[0], weight.shape[1]) for name, weight in weights.items()}
            model = self.kind.put_on_empty(model, adapted.matrices, adapted.peft_config, recipe.adapter)
        with self._fake:
            self.model = _on_fake_tensors(model)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.trained_values = sum(p.numel() for p in trained)
        trained_bytes = sum(p.nbytes for p in trained)
        state, known = optimizer_bytes(str(recipe.training.optim.value), trained_bytes)
        if not known:
            self.notes.append(f"optim {recipe.training.optim.value}: its state is not known here, taken for Adam's")
        self.tensors = TensorBytes(
            base=base,
            buffers=buffers,
            trained=trained_bytes,
            gradients=trained_bytes,
            optimizer=state,
            **self.kind.frozen_bytes(list(self.shapes.values()), self.itemsize, recipe.adapter),
        )
        self._layers = decoder_layers(self.model, text_config)
        self.activations = cache(self._trace_activations)

    @property
    def largest(self) -> tuple[int, int]:
        """`(out, in)` of the largest adapted matrix."""
        return max(self.shapes.values(), key=lambda shape: shape[0] * shape[1])

    @property
    def rebuild(self) -> int:
        """Bytes at the peak of rebuilding the largest adapted weight for a sync."""
        return self.kind.rebuild_bytes(self.largest, self.itemsize)

    @property
    def largest_factors(self) -> int:
        """Bytes of `W`, `U` and `Vt` of the largest adapted matrix."""
        rows, columns = self.largest
        frozen = self.kind.frozen_bytes([self.largest], self.itemsize, self.recipe.adapter)
        return rows * columns * self.itemsize + frozen.get("factors", 0)

    @property
    def merged_bytes(self) -> int:
        """Bytes of all adapted weights, which a sync pushes to a colocated vLLM."""
        return sum(rows * columns for rows, columns in self.shapes.values()) * self.itemsize

    @property
    def shareable(self) -> bool:
        """Whether a colocated vLLM can hold its weights as one with this model: SVF, and no layer of experts."""
        whole = self.recipe.adapter.modules_to_save
        return self.z_bytes is not None and not whole and not fused_experts(self.model)

    @property
    def z_bytes(self) -> int | None:
        """Bytes of all multipliers, which a sync sends to vLLM servers; `None` for adapters that are more than those or
        have none."""
        return (self.tensors.singular_values or None) if self._has_multipliers else None

    def _trace_activations(self, sequences: int, prompt: int, checkpointing: bool) -> Activations | None:
        """Of one micro-batch of `sequences` sequences with `prompt` tokens and a whole completion each; `None`, and a
        note, where the architecture's operations depend on values."""
        training = self.recipe.training
        # which makes no pass of the model; its warm-up does
        if training.objective == "evolution_strategies" and not self.recipe.runs.warm_up_steps:
            return Activations(0, 0, 0, 0, 0)
        has_reference = bool(training.beta) and training.kl_placement == "loss"
        direction = training.kl_type if training.kl_type in EXACT_KL and has_reference else None
        rows, completion = self._rows(sequences, prompt), training.max_completion_length
        batch = Batch(sequences, prompt, completion, checkpointing, has_reference, rows, direction)
        kwargs = dict(training.gradient_checkpointing_kwargs or {})
        kwargs.pop("offload", None)
        every = kwargs.pop("every_n_layers", 1)
        if every != 1:
            self.notes.append(f"gradient checkpointing of every {every} layers is planned as of every layer")
        layers = self._layers
        # torch would log a traceback for what becomes a note here
        logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
        try:
            with self._fake:
                if layers is None:
                    return trace(self.model, batch, kwargs or None)
                whole = list(layers)
                try:
                    del layers[_TRACED:]
                    longer = trace(self.model, batch, kwargs or None)
                    del layers[_TRACED - 1 :]
                    shorter = trace(self.model, batch, kwargs or None)
                finally:
                    del layers[:]
                    layers.extend(whole)
                return longer.extended(shorter, len(whole) - _TRACED)
        # raised by operations whose result depends on values, or that do not support fake tensors
        except (RuntimeError, TypeError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120].rstrip()
            note = f"activations of {self.config.model_type} are not known without weights ({reason})"
            if note not in self.notes:
                self.notes.append(note)
            return None

    def _rows(self, sequences: int, prompt: int) -> PackedRows | None:
        """What `train_packing` makes of a micro-batch, in which the completions of a prompt stand side by side."""
        training = self.recipe.training
        if training.train_packing == "none" or hindrance(self.model) is not None:
            return None
        prompts = [[row // (training.num_generations or 1)] * prompt for row in range(sequences)]
        completions = [[0] * training.max_completion_length] * sequences
        share = training.train_packing == "prompt"
        return pack_tokens(prompts, completions, share, self.model, torch.device("meta"))


def kv_bytes_a_token(config: PretrainedConfig, itemsize: int, ranks: int = 1) -> int | None:
    """
    Bytes of the KV cache for one token in all layers: keys and values of each key-value head, in the model's type. Each
    of `ranks` GPUs has its share of the heads, at least one, and a whole latent vector.

    `None` where layers store something else (recurrent layers, or an unknown kind of latent attention).
    """
    text = config.get_text_config()
    layers = getattr(text, "num_hidden_layers", None)
    if layers is None:
        return None
    if getattr(text, "kv_lora_rank", None):  # latent attention keeps one compressed vector and the rotary part
        return layers * (text.kv_lora_rank + text.qk_rope_head_dim) * itemsize
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    heads = getattr(text, "num_attention_heads", None)
    if not heads or kinds - {"full_attention", "sliding_attention", "chunked_attention"} or hasattr(text, "state_size"):
        return None
    kv_heads = getattr(text, "num_key_value_heads", None) or (1 if getattr(text, "multi_query", False) else heads)
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return 2 * layers * -(-kv_heads // ranks) * width * itemsize


def _dtype(recipe: Recipe, config: PretrainedConfig, notes: list[str]) -> torch.dtype:
    if recipe.model.dtype != "auto":
        return getattr(torch, recipe.model.dtype)
    stored = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    if stored is None:
        notes.append("dtype auto: config.json does not say the type of the weights; planned as float32")
        return torch.float32
    return stored if isinstance(stored, torch.dtype) else getattr(torch, str(stored))


def _base(recipe: Recipe, config: PretrainedConfig, dtype: torch.dtype) -> Any:
    # all fused kernels need the same memory; those of another package may be missing here
    attention = {"attn_implementation": "eager"} if recipe.model.attn_implementation == "eager" else {}
    try:
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=recipe.model.trust_remote_code, **attention
        )
    except (ValueError, ImportError, RuntimeError, AttributeError) as error:
        raise SVFError(
            f"cannot build {recipe.model.location} from its configuration alone: {one_line(error)}"
        ) from error
    add_hidden_states_forward(model)
    return model.requires_grad_(False)


def _on_fake_tensors(model: Any) -> Any:
    """Put fake tensors, which claim to be on the CPU, in the place of those without a device. (PEFT cannot work on fake
    tensors, and SDPA on ones without a device is not the fused kernel.)"""
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:  # tied weights stay tied
            empty = torch.empty(tensor.shape, dtype=tensor.dtype)
            if isinstance(tensor, nn.Parameter):
                empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
            made[id(tensor)] = empty
        return made[id(tensor)]

    for module in model.modules():
        own = module.__dict__  # parameters and buffers are in dictionaries there, as some of what PEFT keeps
        for tensors in (own, *(value for value in own.values() if isinstance(value, dict))):
            for name, tensor in tensors.items():
                if isinstance(tensor, Tensor):
                    tensors[name] = fake(tensor)
    return model
