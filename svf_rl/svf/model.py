"""The PEFT tuner: a thin shell that puts SVF layers into a model and checks what is loaded into them."""

import copy
import hashlib
import re
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, _maybe_include_all_linear_layers
from peft.utils.error import NoMatchingPeftModuleError
from torch import Tensor, nn
from tqdm import tqdm

from svf_rl.errors import SVFError
from svf_rl.svf.cache import FactorCache
from svf_rl.svf.config import LARGEST, SVFConfig
from svf_rl.svf.decompose import fingerprint, thin_svd
from svf_rl.svf.expert import FINGERPRINT, PREFIX, PROBE, Z
from svf_rl.svf.layer import SVFLinear, svf_layers
from svf_rl.svf.mask import is_sound
from svf_rl.svf.probe import agrees, probe, project
from svf_rl.svf.sharding import gather_parameters
from svf_rl.svf.targets import find_targets, is_linear, is_output_layer, logical_weight, target_regex
from svf_rl.svf.vector import SVFCombination
from svf_rl.svf.weighted import WeightedAdapters

# The suffix of the trained weights of a combination, stored in addition to its z.
_ALPHA = ".svf_alpha"


class SVFModel(WeightedAdapters, BaseTuner):
    """
    Wraps a model for singular value fine-tuning; made by `get_peft_model(model, SVFConfig(...))`.

    The factors of each targeted weight come from the factor cache (see `svf-rl decompose`) if it has that weight, and
    are otherwise computed from the live weight.
    """

    prefix: str = "svf_"
    tuner_layer_cls = SVFLinear

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """PEFT's injection between our checks. (PEFT's own hooks run only for the first adapter of a model.)

        Raises:
            SVFError: the targets cannot be adapted, or the adapter was trained on other weights.
        """
        # A copy: one configuration object may serve several models, and each records its own fingerprint.
        config = copy.copy(self.peft_config[adapter_name])
        if not config.target_modules:
            raise SVFError("target_modules is empty: use 'mlp', 'attention', 'mlp+attention' or module names")
        config = self.peft_config[adapter_name] = _maybe_include_all_linear_layers(config, model)
        total = None
        if not svf_layers(model):  # the first adapter: refuse what cannot be adapted before anything is changed
            targets = target_regex(config.target_modules)
            if config.exclude_modules:
                targets = rf"(?!(?:{target_regex(config.exclude_modules)})\Z)(?:{targets})"
            total = len(find_targets(model, targets))
        with tqdm(total=total, desc="Factors of the weights", unit="matrix", delay=3, leave=False) as self._progress:
            try:
                super().inject_adapter(model, adapter_name, *args, **kwargs)
            except NoMatchingPeftModuleError as error:
                raise SVFError(str(error)) from None
            finally:
                del self._progress  # it has an open file, with which the model could not be pickled

        layers = [layer for layer in svf_layers(model).values() if adapter_name in layer.svf_z]
        if not layers:
            raise SVFError(f"target_modules {config.target_modules!r} match no linear layer: name nn.Linear modules")
        live = hashlib.sha256("".join(layer.weight_id for layer in layers).encode()).hexdigest()
        if config.base_fingerprint not in (None, live):
            base = config.base_model_name_or_path or "the model it was trained on"
            raise SVFError(
                f"the adapter was trained on other base weights (fingerprint {config.base_fingerprint[:12]}, "
                f"here {live[:12]}): load it onto {base}, in the dtype of its training"
            )
        config._live_fingerprint = live

    @staticmethod
    def _check_target_module_exists(peft_config: SVFConfig, key: str) -> Any:
        matched = BaseTuner._check_target_module_exists(peft_config, key)
        layers = peft_config.layers_to_transform
        if not matched or layers is None or not isinstance(peft_config.target_modules, str):
            return matched
        # PEFT looks at the layer index only where target_modules is a list; here presets are expressions.
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
            target.update_layer(adapter_name, peft_config)
            return
        if not is_linear(target):  # an expression such as '.*mlp.*' also matches containers and activations
            return
        if is_output_layer(self.model, current_key, target):
            raise SVFError(f"target_modules match the output layer {current_key}, which SVF does not adapt")
        self._progress.set_postfix_str(current_key, refresh=False)
        layer = _wrap(target, current_key)
        layer.update_layer(adapter_name, peft_config)
        # not by _replace_module, which also moves the new module: factors are made where the weight is
        setattr(parent, target_name, layer)
        self._progress.update()

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
        current weights of a combination in training are written into its configuration."""
        result, rows = {}, {}
        for name, layer in svf_layers(model).items():
            if adapter_name not in layer.svf_z:
                continue
            vector = layer.svf_z[adapter_name]
            if isinstance(vector, SVFCombination):  # saved as the plain adapter that it makes
                z = vector.weight.detach()
                result[name + _ALPHA] = vector.alpha.detach().clone()  # several matrices may share it
                rows[id(vector.alpha)] = [round(value, 6) for value in vector.used_alpha.tolist()]
            else:
                z = state_dict[f"{name}.svf_z.{adapter_name}.weight"]
            result[f"{name}.svf_z.{adapter_name}.weight"] = z
            result[name + FINGERPRINT] = torch.frombuffer(bytearray.fromhex(layer.weight_id), dtype=torch.uint8)
            result[name + PROBE] = probe(layer.projections, layer.multiplier(adapter_name, z).detach())
        if rows:
            config.combination = {**config.combination, "alpha": list(rows.values())}
        return result

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Refuse an adapter of another base model before any value is set; keep only `z`."""
        base = getattr(config, "base_model_name_or_path", None) or "the model it was trained on"
        layers = {
            name.removeprefix(PREFIX): layer for name, layer in svf_layers(model).items() if adapter_name in layer.svf_z
        }
        saved = {key.removeprefix(PREFIX): value for key, value in state_dict.items()}
        extra = sorted({k.removesuffix(Z) for k in saved if k.endswith(Z)} - layers.keys())
        if extra:
            few = ", ".join(extra[:2]) + (f" and {len(extra) - 2} more" if len(extra) > 2 else "")
            raise SVFError(f"the adapter has z for {few}, not adapted in this model: load it onto {base}")
        for name, layer in layers.items():
            _check_saved(name, layer, adapter_name, saved, base)
        in_training = any(isinstance(layer.svf_z[adapter_name], SVFCombination) for layer in layers.values())
        if in_training and any(name + _ALPHA not in saved for name in layers):
            raise SVFError(
                "the adapter is not a combination with trained weights: training a combination cannot resume from it"
            )
        # A combination in training resumes from its weights, not from the z computed from them.
        left_out = (FINGERPRINT, PROBE, Z if in_training else _ALPHA)
        kept = {
            key.replace(_ALPHA, ".svf_z.alpha"): value
            for key, value in state_dict.items()
            if not key.endswith(left_out)
        }
        remapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, kept)
        return remapped


def _check_saved(name: str, layer: SVFLinear, adapter_name: str, saved: dict[str, Tensor], base: str) -> None:
    missing = [suffix for suffix in (Z, FINGERPRINT, PROBE) if name + suffix not in saved]
    if missing:
        raise SVFError(f"the adapter file lacks {name}{missing[0]}: it is damaged, save the adapter again")
    z, recorded = saved[name + Z], saved[name + FINGERPRINT]
    if recorded.numpy(force=True).tobytes().hex() != layer.weight_id:
        raise SVFError(
            f"the adapter was trained on other weights than those of {name}: load it onto {base}, "
            "in the dtype of its training"
        )
    if z.shape != layer.svf_factors.s.shape or not is_sound(z):
        raise SVFError(
            f"z of {name} has shape {tuple(z.shape)}, is not finite or above {LARGEST:g}: the adapter file is damaged"
        )
    m = layer.multiplier(adapter_name, z).detach()
    if not agrees(layer.projections, m, saved[name + PROBE].float().cpu()):
        raise SVFError(
            f"the factors of {name} are not those of the adapter's training (their probe differs by more than 1e-3): "
            "use the dtype and the factor cache of the training run"
        )


def _wrap(module: nn.Module, name: str) -> SVFLinear:
    weight = module.weight
    if weight.is_meta:
        raise SVFError(f"{name} has no weight yet (meta device): load the base model's weights before adding SVF")
    if not weight.is_floating_point() or weight.dtype.itemsize == 1:  # fp8 has separate scales too
        raise SVFError(f"{name} is quantized ({weight.dtype}): SVF needs floating-point weights, load it unquantized")
    with gather_parameters([weight]):
        weight = logical_weight(module).detach()
        weight_id = fingerprint(weight)
        factors = FactorCache().load(weight_id, weight.dtype, weight.device, weight)
        if factors is None:
            factors = thin_svd(weight).to(weight.dtype)
        projections = project(factors, weight)
    return SVFLinear(module, factors, weight_id, projections)
