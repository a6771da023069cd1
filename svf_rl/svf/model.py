"""The PEFT tuner: a thin shell that puts SVF layers into a model and checks what is loaded into them."""

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, _maybe_include_all_linear_layers
from peft.utils import AuxiliaryTrainingWrapper
from peft.utils.error import NoMatchingPeftModuleError
from torch import Tensor, nn
from tqdm import tqdm

from svf_rl.errors import SVFError, short_repr
from svf_rl.svf.cache import FactorCache
from svf_rl.svf.config import LARGEST, SVFConfig
from svf_rl.svf.core import DIAGONAL
from svf_rl.svf.decompose import Factors, fingerprint, thin_svd
from svf_rl.svf.expert import BIAS, FINGERPRINT, PREFIX, PROBE, RANK, Z, is_well_formed
from svf_rl.svf.layer import SVFLinear, svf_layers
from svf_rl.svf.mask import core_of, is_sound
from svf_rl.svf.original import OriginalWeights, keep_trainable
from svf_rl.svf.probe import Projections, agrees, project
from svf_rl.svf.sharding import gather_parameters, is_dtensor, is_sharded, loaded, plain_path, whole
from svf_rl.svf.targets import check_target, find_targets, logical_weight, quantization_of, regex_of
from svf_rl.svf.vector import SVFCombination
from svf_rl.svf.weighted import WeightedAdapters

# The suffix of the trained weights of a combination, stored in addition to its z.
_ALPHA = ".svf_alpha"
_SAVED = (Z, BIAS, FINGERPRINT, PROBE, RANK, _ALPHA)


class SVFModel(WeightedAdapters, BaseTuner):
    """
    Wraps a model for singular value fine-tuning; made by `get_peft_model(model, SVFConfig(...))`.

    The factors of each targeted weight come from the factor cache (see `svf-rl decompose`) if it has that weight, and
    are otherwise computed from the live weight, or, where that is quantised, from the one in the model's checkpoint.
    """

    prefix: str = "svf_"
    tuner_layer_cls = SVFLinear

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """PEFT's injection between our checks. (PEFT's own hooks run only for the first adapter of a model.)

        Raises:
            SVFError: the targets cannot be adapted, or the adapter was trained on other weights.
        """
        config = self.peft_config[adapter_name]
        if not config.target_modules:
            raise SVFError("target_modules is empty: use 'mlp', 'attention', 'mlp+attention' or module names")
        keep_trainable(model)
        total, self._originals = None, OriginalWeights(model)
        if kwargs.get("state_dict") is None:  # refuse what cannot be adapted before anything is changed
            total = self._check_targets(model, _maybe_include_all_linear_layers(config, model))
        self._shared: nn.Module | None = None  # the vector of a core that has one for all matrices
        with tqdm(total=total, desc="Factors of the weights", unit="matrix", delay=3, leave=False) as self._progress:
            try:
                super().inject_adapter(model, adapter_name, *args, **kwargs)
            except NoMatchingPeftModuleError as error:
                raise SVFError(str(error)) from None
            finally:
                # The bar has an open file, with which the model could not be pickled.
                del self._progress, self._originals, self._shared

        layers = _adapted(model, adapter_name)
        if not layers:
            raise SVFError(
                f"target_modules {config.target_modules!r:.300} match no linear layer: name nn.Linear modules"
            )
        config._awaits_values = config.from_file
        live = _digest(layers)
        # Loading by PEFT looks at the stored probes later; other ways of loading set z without asking.
        if not config.from_file and config.base_fingerprint not in (None, live):
            if len(self.peft_config) > 1:  # it does not stay beside others
                self.delete_adapter(adapter_name)
            raise SVFError(
                f"the adapter was trained on other base weights (fingerprint {config.base_fingerprint[:12]}, here "
                f"{live[:12]}): load it onto {_base_of(config)}, in the dtype of its training; or, for weights that "
                "differ by rounding, with PeftModel.from_pretrained, which compares what z does"
            )

    def _check_targets(self, model: nn.Module, config: SVFConfig) -> int:
        """How many modules the new adapter matches; raises `SVFError` where one of them cannot be adapted."""
        layers, listed = svf_layers(model), not isinstance(config.target_modules, str)
        if not layers:
            find_targets(model, regex_of(config), listed)
        inside = tuple(f"{name}." for name in layers)
        names = [name for name, _ in model.named_modules() if name]
        matched = [name for name in names if self._check_target_module_exists(config, name)]
        adapted = [
            name
            for name in matched
            if not name.startswith(inside)
            and (name in layers or check_target(model, name, model.get_submodule(name), listed))
        ]
        for ending in (config.target_modules or ()) if listed else ():
            if not any(f".{name}".endswith(f".{ending}") for name in names):
                warnings.warn(f"target_modules: no module is called {ending!r}, the others are adapted", stacklevel=2)
        for name in adapted:
            module = model.get_submodule(name)
            core_of(config, name).size(layers[name].svf_factors.s.numel() if name in layers else _rank(module))
            if name not in layers and quantization_of(module):
                self._originals.find(name, module)
        return len(adapted)

    def _check_merge_allowed(self) -> None:
        """Before PEFT merges the first layer."""
        super()._check_merge_allowed()
        users = Counter(id(weight) for _, weight in self.model.named_parameters(remove_duplicate=False))
        for layer in svf_layers(self.model).values():
            layer.check_mergeable()
            base = layer.get_base_layer()
            if users[id(base.weight)] > 1 and not is_sharded(base.weight):
                warnings.warn(
                    f"{layer.path} shares its weight with another module: they differ once the adapter is merged, and "
                    "a model that is saved so is loaded with one of them for both",
                    stacklevel=2,
                )
                base.weight = nn.Parameter(base.weight.data, requires_grad=False)

    @contextmanager
    def _enable_peft_forward_hooks(self, *_: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT calls it around every forward pass and generation, and drops afterwards what it does not know."""
        if kwargs.get("alora_offsets") is not None:
            raise SVFError("alora_offsets are for adapters of LoRA: drop them")
        names, beams = kwargs.get("adapter_names"), kwargs.get("num_beams") or 1
        if names is None:
            yield
            return
        if self.training:
            raise ValueError("adapter_names choose among trained adapters: call eval() first")
        unknown = sorted(set(names) - {"__base__", *self.peft_config})
        if unknown:
            raise ValueError(
                f"adapter_names: there is no adapter {unknown[0]!r}; there are: {', '.join(self.peft_config)}"
            )
        encoder = self.model.get_encoder() if hasattr(self.model, "get_encoder") else self.model
        unrepeated = set() if encoder is self.model else set(encoder.modules())  # it reads each row once for all beams
        of_beams = [name for name in names for _ in range(beams)]
        handles = [
            module.register_forward_pre_hook(
                partial(_with_names, names=list(names) if module in unrepeated else of_beams), with_kwargs=True
            )
            for module in self.modules()
            if isinstance(module, SVFLinear | AuxiliaryTrainingWrapper)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @staticmethod
    def _check_target_module_exists(peft_config: SVFConfig, key: str) -> Any:
        matched = BaseTuner._check_target_module_exists(peft_config, key)
        layers = getattr(peft_config, "layers_to_transform", None)  # asked for other methods too
        if not matched or layers is None or layers == []:
            return matched
        # PEFT looks at the layer index only where target_modules is a list, and not for a whole path in it; here
        # presets are expressions, and all-linear lists whole paths in small models.
        patterns = peft_config.layers_pattern or r"[^.]*"
        names = "|".join([patterns] if isinstance(patterns, str) else patterns)
        index = re.match(rf".*?\.(?:{names})\.(\d+)\.", "." + key)
        return index is not None and int(index[1]) in ([layers] if isinstance(layers, int) else layers)

    def _create_and_replace(
        self,
        peft_config: SVFConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        if isinstance(target, SVFLinear):
            self._add_to(target, adapter_name, peft_config)
            return
        if not check_target(self.model, current_key, target, not isinstance(peft_config.target_modules, str)):
            return
        self._progress.set_postfix_str(current_key, refresh=False)
        layer = _wrap(target, current_key, self._originals)
        self._add_to(layer, adapter_name, peft_config)
        # not by _replace_module, which also moves the new module: factors are made where the weight is
        setattr(parent, target_name, layer)
        self._progress.update()

    def _add_to(self, layer: SVFLinear, adapter_name: str, config: SVFConfig) -> None:
        layer.update_layer(adapter_name, config, self._shared)
        if layer.svf_mask[adapter_name].shared:
            self._shared = layer.svf_z[adapter_name]

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """`z` of every layer, with the fingerprint of its `W` (32 bytes) and the probe of its change (16 numbers). The
        current weights of a combination in training are written into its configuration, as the fingerprint of all."""
        result, rows = {}, {}
        state = {plain_path(key): value for key, value in state_dict.items()}
        layers = _adapted(model, adapter_name)
        for path, layer in layers.items():
            layer.check_weight(look=True)
            vector, name = layer.svf_z[adapter_name], plain_path(path)
            if isinstance(vector, SVFCombination):  # saved as the plain adapter that it makes
                z = vector.weight.detach()
                result[name + _ALPHA] = vector.alpha.detach().clone()  # several matrices may share it
                rows[id(vector.alpha)] = [round(value, 6) for value in vector.used_alpha.tolist()]
            else:
                key = f"{name}.svf_z.{adapter_name}.weight"
                # PEFT leaves out a key that holds the name of another adapter, also where a module has that name
                z = state[key] if key in state else vector.weight.detach()
                if layer.svf_mask[adapter_name].shared:  # safetensors takes no tensor twice, and transformers no care
                    z = z.clone()
            result[f"{name}.svf_z.{adapter_name}.weight"] = z
            if adapter_name in layer.svf_bias:
                key = f"{name}.svf_bias.{adapter_name}.weight"
                result[key] = state[key] if key in state else layer.svf_bias[adapter_name].weight.detach()
            if config.core != DIAGONAL and not layer.svf_mask[adapter_name].mixes:  # what reads experts asks for it
                result[name + RANK] = torch.tensor([layer.svf_factors.s.numel()])
            result[name + FINGERPRINT] = torch.frombuffer(bytearray.fromhex(layer.weight_id), dtype=torch.uint8)
            if not z.is_meta:
                result[name + PROBE] = layer.probe_of(adapter_name, whole(z))
        if rows:
            config.combination = {**config.combination, "alpha": list(rows.values())}
        config._live_fingerprint = _digest(layers)
        return result

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """Only where it stands for the adapter: a module may have the same name."""
        key = plain_path(key)
        if key.endswith((FINGERPRINT, PROBE, RANK, _ALPHA)):
            return key
        for part in SVFLinear.adapter_layer_names:
            own = f".{part}.{adapter_name}."
            if own in key:
                head, _, tail = key.rpartition(own)
                return f"{head}.{part}.{tail}"
        plain: str = super()._remove_adapter_name_from_key(key, adapter_name)
        return plain

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Refuse an adapter of another base model before any value is set; keep only `z`."""
        layers = {plain_path(k).removeprefix(PREFIX): v for k, v in _adapted(model, adapter_name).items()}
        state_dict = {plain_path(key): value for key, value in state_dict.items()}
        saved = {key.removeprefix(PREFIX): value for key, value in state_dict.items()}
        try:
            _check_keys(model, config, saved)
            _check_saved(layers, adapter_name, saved, config)
        except SVFError:
            # An adapter that came with this file does not stay beside others, at z = 1; one that was there does.
            if config._awaits_values and len(model.peft_config) > 1 and hasattr(model, "delete_adapter"):
                model.delete_adapter(adapter_name)
            raise
        config._awaits_values = False
        in_training = any(isinstance(layer.svf_z[adapter_name], SVFCombination) for layer in layers.values())
        if in_training and any(name + _ALPHA not in saved for name in layers):
            raise SVFError(
                "the adapter is not a combination with trained weights: training a combination cannot resume from it"
            )
        # A combination in training resumes from its weights, not from the z computed from them.
        left_out = (FINGERPRINT, PROBE, RANK, Z if in_training else _ALPHA)
        kept = {
            key.replace(_ALPHA, ".svf_z.alpha"): value
            for key, value in state_dict.items()
            if not key.endswith(left_out)
        }
        remapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, kept)
        return remapped


def _adapted(model: nn.Module, adapter_name: str) -> dict[str, SVFLinear]:
    return {name: layer for name, layer in svf_layers(model).items() if adapter_name in layer.svf_z}


def _digest(layers: dict[str, SVFLinear]) -> str:
    """The fingerprint of all these weights together."""
    return hashlib.sha256("".join(layer.weight_id for layer in layers.values()).encode()).hexdigest()


def _base_of(config: PeftConfig) -> str:
    return getattr(config, "base_model_name_or_path", None) or "the model it was trained on"


def _check_keys(model: nn.Module, config: PeftConfig, saved: dict[str, Tensor]) -> None:
    """Raises `SVFError` for a tensor that is no value of SVF's, which PEFT would put in the place of a frozen one, and
    for one of another type. Modules that the configuration saves may be there, and embeddings that were resized."""
    for key, values in saved.items():
        if not is_well_formed(key, values):
            raise SVFError(
                f"{short_repr(key)} is of another type or shape: the adapter file is damaged, save the adapter again"
            )
    others = [key for key in saved if not key.endswith(_SAVED)]
    modules = [*(config.modules_to_save or ()), *(_embeddings(model) if others else ())]
    for key in others:
        if not any(f"{name}." in key for name in modules):  # PEFT's names are ends of paths
            raise SVFError(
                f"the adapter file also has {short_repr(key)}, not of SVF: it would replace what is frozen, take it out"
            )


def _embeddings(model: nn.Module) -> list[str]:
    """The paths of a model's embeddings, where it knows them."""
    found = []
    for ask in ("get_input_embeddings", "get_output_embeddings"):
        with suppress(AttributeError, NotImplementedError):
            found.append(getattr(model, ask)())
    return [plain_path(name).removeprefix(PREFIX) for name, module in model.named_modules() if module in found]


def _check_saved(layers: dict[str, SVFLinear], adapter_name: str, saved: dict[str, Tensor], config: PeftConfig) -> None:
    """Raises `SVFError` for what does not fit these layers; warns where other weights make of `z` what their own did.
    `z` without anything else is taken as it is."""
    base, other_base = _base_of(config), config.base_fingerprint not in (None, _digest(layers))
    other = "the adapter was trained on other base weights: " if other_base else ""
    extra = sorted({k.removesuffix(Z) for k in saved if k.endswith(Z)} - layers.keys())
    if extra:
        few = ", ".join(map(short_repr, extra[:2])) + (f" and {len(extra) - 2} more" if len(extra) > 2 else "")
        raise SVFError(f"{other}the adapter has z for {few}, not adapted in this model: load it onto {base}")
    if not config.biases and any(key.endswith(BIAS) for key in saved):
        raise SVFError("the adapter file has biases, its configuration none: it is damaged, save the adapter again")
    z_alone = not any(key.endswith((FINGERPRINT, PROBE)) for key in saved)
    different, told = [], False  # whether any of the probes of those is not 0, as it is at z = 1
    for name, layer in layers.items():
        r = layer.svf_factors.s.numel()
        sizes = {Z: layer.svf_mask[adapter_name].size(r), **({BIAS: layer.out_features} if config.biases else {})}
        missing = [suffix for suffix in (*sizes, FINGERPRINT, PROBE) if name + suffix not in saved]
        if z_alone and missing == [FINGERPRINT, PROBE]:
            missing = []
        if missing:
            raise SVFError(f"the adapter file lacks {name}{missing[0]}: it is damaged, save the adapter again")
        for suffix, size in sizes.items():
            values, what = saved[name + suffix], f"{'z' if suffix == Z else 'the bias'} of {name}"
            shape = tuple(values.shape)
            if shape != (size,) and other:
                raise SVFError(f"{other}{what} has shape {shape}, here {(size,)}: load it onto {base}")
            if shape != (size,) or not (values.is_meta or is_sound(values)):
                raise SVFError(
                    f"{what} has shape {shape}, is not finite or above {LARGEST:g}: the adapter file is damaged"
                )
        if z_alone:
            continue
        z = saved[name + Z]
        same = saved[name + FINGERPRINT].numpy(force=True).tobytes().hex() == layer.weight_id
        different += [] if same else [name]
        found, recorded = layer.probe_of(adapter_name, z), saved[name + PROBE].float().cpu()
        told = told or (not same and bool(recorded.any()))
        if agrees(layer.projections, found, recorded, same):
            continue
        if same:
            raise SVFError(
                f"the factors of {name} are not those of the adapter's training (their probe differs by more than "
                "1e-3): use the dtype and the factor cache of the training run"
            )
        raise _other_weights(f"{name} is the first where its z does something else", base)
    if different and other_base and not told:
        raise _other_weights(f"{different[0]} is the first; it is not trained, and cannot be compared", base)
    if different or (z_alone and other):
        named = f", such as {different[0]}" if different else ""
        judged = (
            "z changes them as it did its own, up to rounding" if different else "and nothing tells what z does here"
        )
        warnings.warn(f"the adapter was trained on other base weights{named}; {judged}", stacklevel=2)


def _with_names(_: nn.Module, inputs: Any, options: dict[str, Any], names: list[str]) -> tuple[Any, dict[str, Any]]:
    return inputs, {**options, "adapter_names": names}


def _other_weights(where: str, base: str) -> SVFError:
    return SVFError(
        f"the adapter was trained on other base weights ({where}): load it onto {base}, in the dtype of its training; "
        "set_peft_model_state_dict takes z alone onto any weights"
    )


def _rank(module: Any) -> int:
    """Of a `Linear` or `Conv1D`, also where its weight is packed."""
    linear = isinstance(module, nn.Linear)
    return int(min(module.in_features, module.out_features) if linear else min(module.nx, module.nf))


def _wrap(module: nn.Module, name: str, originals: OriginalWeights) -> SVFLinear:
    weight = module.weight
    if weight.is_meta and not hasattr(module, "_hf_hook"):
        raise SVFError(f"{name} has no weight yet (meta device): load the base model's weights before adding SVF")
    if is_dtensor(weight):
        raise SVFError(f"{name} is shared out over processes already: put the adapter on the model before that")
    with loaded(module), gather_parameters([weight]):
        original = originals.read(name, module) if quantization_of(module) else logical_weight(module).detach()
        try:
            weight_id, factors, projections = decompose(original)
        except SVFError as error:
            raise SVFError(f"{name}: {error}") from error
    return SVFLinear(module, factors, weight_id, projections, name)


def decompose(weight: Tensor) -> tuple[str, Factors, Projections]:
    """The fingerprint of a weight (out, in), its factors in its type, from the cache where they are there, and what
    probes need of it."""
    weight_id = fingerprint(weight)
    factors = FactorCache().load(weight_id, weight.dtype, weight.device, weight)
    if factors is None:
        factors = thin_svd(weight).to(weight.dtype)
    return weight_id, factors, project(factors, weight)
