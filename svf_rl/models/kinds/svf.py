"""SVF: the singular values of each weight are scaled by a trained vector."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig
from torch import Tensor, nn

from svf_rl.errors import SVFError
from svf_rl.markdown import code, markdown_table
from svf_rl.models.kinds.kind import OF_COMBINATION, OF_LORA, OF_SVF, AdapterKind, named_targets
from svf_rl.storage.bundled import find_accelerate_config
from svf_rl.svf import SVFConfig, SVFLinear
from svf_rl.svf.checkpoint import decompose_checkpoint
from svf_rl.svf.core import DIAGONAL
from svf_rl.svf.decompose import Factors
from svf_rl.svf.expert import Expert, Z, read_expert
from svf_rl.svf.mask import core_of
from svf_rl.svf.merge import rebuild_bytes
from svf_rl.svf.model import SVFModel
from svf_rl.svf.probe import Projections
from svf_rl.svf.targets import logical_weight, regex_of

if TYPE_CHECKING:
    from svf_rl.models.arguments import AdapterArguments, ModelArguments

# What a recipe says of an adapter, by the names of SVFConfig.
SETTINGS = ("target_modules", "exclude_modules", "layers_to_transform", "modules_to_save", *OF_SVF)


class SVFKind(AdapterKind):
    """`W' = U diag(s·m(z)) Vᵀ`, or what another core makes of the factors; `z` is trained. [`svf_rl.svf.SVFConfig`]
    explains the options. An adapter that was combined from others, with weights found by a search or by training, is
    one of this kind too."""

    title = "singular value fine-tuning (SVF)"
    limits = (
        "The adapter fits the weights that it was trained on and no others: loading it onto another base model, or "
        "another revision, is refused.",
    )
    import_line = "import svf_rl.svf  # registers SVF with PEFT"
    same_as_saved = ("core", "core_seed", "biases", "parameterization", "max_multiplier", "renormalize")
    not_read: tuple[str, ...] = (*OF_LORA, *OF_COMBINATION)
    rebuild_bytes = staticmethod(rebuild_bytes)

    def check_training(self, values: Mapping[str, Any], zero_stage: int = 0) -> None:
        super().check_training(values, zero_stage)
        settings = {name: values[name] for name in ("core", "core_seed", "biases") if values.get(name) is not None}
        config = SVFConfig(**settings)
        if zero_stage == 3 and core_of(config, "").shared:
            raise SVFError(
                f"ZeRO-3 does not share out core: {config.core}, which trains a few values: use "
                f"{find_accelerate_config('accelerate_configs/zero2.yaml')}"
            )
        if config.is_multiplier:
            return
        what = beside_multipliers(config)
        if values.get("objective") == "evolution_strategies":
            raise SVFError(f"objective: evolution_strategies does not go with {what}: use a core of multipliers alone")
        if values.get("vllm_weights") == "shared":
            raise SVFError(f"vllm_weights: shared does not go with {what}: set it to merged")

    def config(self, arguments: "AdapterArguments") -> SVFConfig:
        return SVFConfig(task_type="CAUSAL_LM", **{name: getattr(arguments, name) for name in SETTINGS})

    def describe(self, arguments: "AdapterArguments") -> str:
        renormalized = ", renormalized" if arguments.renormalize else ""
        core = arguments.parameterization if arguments.core == DIAGONAL else arguments.core
        biases = ", with biases" if arguments.biases else ""
        return f"SVF on {arguments.target_modules}, {core}{renormalized}{biases}"

    def trained_values(self, config: PeftConfig, shapes: Mapping[str, tuple[int, ...]]) -> int:
        sizes = [core_of(config, name).size(min(shape)) for name, shape in shapes.items()]
        biases = sum(shape[0] for shape in shapes.values()) if config.biases else 0
        return (sizes[0] if core_of(config, "").shared else sum(sizes)) + biases

    def prepare(self, model: "ModelArguments", config: PeftConfig, dtype: torch.dtype) -> None:
        """Puts the factors of the targeted weights into the cache, a matrix at a time, where injecting the adapter
        finds them."""
        self.decompose(model, config, dtype)

    def decompose(self, model: "ModelArguments", config: PeftConfig, dtype: torch.dtype) -> dict[str, str]:
        """Does so, and returns of each adapted matrix the path in the model's files, and the fingerprint that its
        factors are stored by."""
        index = decompose_checkpoint(
            model.location,
            regex_of(config),
            dtype,
            device="cuda" if torch.cuda.is_available() else "cpu",
            revision=model.model_revision,
            trust_remote_code=model.trust_remote_code,
        )
        return {
            index.stored[name]: entry.fingerprint
            for name, entry in index.modules.items()
            if SVFModel._check_target_module_exists(config, name)
        }

    def rebuilt_weight(self, layer: Any) -> Tensor:
        return layer.merged_weight()

    def rebuilt_bias(self, layer: Any) -> Tensor | None:
        bias = layer.merged_bias()
        if bias is not None and layer.get_base_layer().bias is None:
            raise no_place_for_bias(layer.path)
        return bias

    def put_on_empty(
        self, model: Any, matrices: Sequence[str], config: PeftConfig, arguments: "AdapterArguments"
    ) -> nn.Module:
        shared = None
        for name in matrices:
            module = model.get_submodule(name)
            rows, columns = logical_weight(module).shape
            r, dtype = min(rows, columns), module.weight.dtype
            U, Vt = torch.empty(rows, r, dtype=dtype), torch.empty(r, columns, dtype=dtype)
            empty = Factors(U, torch.empty(r, dtype=torch.float32), Vt)
            layer = SVFLinear(module, empty, "", Projections(*(torch.empty(0) for _ in range(4))), name)
            layer.update_layer("default", config, shared)
            shared = layer.svf_z["default"] if layer.svf_mask["default"].shared else None
            layer.requires_grad_(False)
            layer.svf_z.requires_grad_(True)
            layer.svf_bias.requires_grad_(True)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)
        for name, module in list(model.named_modules()):
            if name.rpartition(".")[2] in (config.modules_to_save or []):
                module.requires_grad_(True)  # a copy of the module, which takes its place
        return model

    def frozen_bytes(
        self, shapes: Sequence[tuple[int, int]], itemsize: int, arguments: "AdapterArguments"
    ) -> dict[str, int]:
        """`U` (out, r) and `Vt` (r, in) in the model's type, and `s` (r,) in fp32, as are the projections of a core."""
        ranks = [min(shape) for shape in shapes]
        factors = sum(r * sum(shape) for r, shape in zip(ranks, shapes, strict=True)) * itemsize
        core = core_of(self.config(arguments), "")
        if core.shared:
            factors += 4 * sum(r * core.size(r) for r in ranks)
        return {"factors": factors, "singular_values": 4 * sum(ranks)}

    def label(self, config: Mapping[str, Any]) -> str:
        core, biases = config.get("core", DIAGONAL), " + biases" if config.get("biases") else ""
        named = "" if core == DIAGONAL else f" {core}"
        return "SVF combination" if config.get("combination") else f"SVF{named}{biases}"

    def describe_saved(self, config: Mapping[str, Any]) -> str:
        if config.get("core", DIAGONAL) != DIAGONAL or config.get("biases"):
            return _describe_core(config)
        m = "m = z"
        if config.get("parameterization") == "sigmoid":
            m = f"m = {config.get('max_multiplier', 2.0):g} · sigmoid(z)"
        if config.get("renormalize"):
            m += ", scaled so that the sum of the singular values stays"
        text = (
            "Each adapted weight `W = U diag(s) Vᵀ` becomes `W' = U diag(s·m) Vᵀ`; the vector `z`, one value a "
            f"singular value, is all that was trained ({m}). See "
            "[Transformer²](https://arxiv.org/abs/2501.06252), section 3.1. "
            f"Adapted: {named_targets(config)}."
        )
        return text + (f"\n\n{_describe_combination(config['combination'])}" if config.get("combination") else "")

    def read_expert(self, folder: Path, config: Mapping[str, Any], name: str | None = None) -> Expert | None:
        own = {key: config[key] for key in ("core", "core_seed", "biases") if key in config}
        whole = config.get("modules_to_save") or not SVFConfig(**own).is_multiplier
        return None if whole else read_expert(folder, name)

    def count_values(self, folder: Path, config: Mapping[str, Any]) -> int:
        """Of a combination its weights α, else `z`, once where matrices share it, biases and whole modules."""
        if config.get("combination"):
            return sum(len(row) for row in config["combination"]["alpha"])
        sizes = self.stored_sizes(folder)
        z = [size for name, size in sizes.items() if name.endswith(Z)]
        own = SVFConfig(core=config.get("core", DIAGONAL))
        repeated = sum(z[1:]) if core_of(own, "").shared else 0
        return sum(sizes.values()) - repeated


_CORES = {
    "top": "`m = 1 + z` for the {} largest singular values, and 1 for the others",
    "bottom": "`m = 1 + z` for the {} smallest singular values, and 1 for the others",
    "projected": "`m = 1 + P v`, with one vector `v` of {} values for all matrices and fixed random projections `P`",
    "band": "with trained `m`, and beside `s·m` on the diagonal a trained band that leads from a singular direction to "
    "those up to {} away",
    "block": "with `m = 1`, and added to the diagonal a trained dense block between {} singular directions",
}


def _describe_core(config: Mapping[str, Any]) -> str:
    core = config.get("core", DIAGONAL)
    kind, _, number = core.partition(":")
    how = "`m = z`" if core == DIAGONAL else _CORES[kind].format(number.replace(":", " ").strip())
    biases = " A bias of each matrix was trained too." if config.get("biases") else ""
    return (
        f"Each adapted weight `W = U diag(s) Vᵀ` becomes `W' = U diag(s·m) Vᵀ` (core `{core}`): {how}.{biases} "
        f"Adapted: {named_targets(config)}."
    )


def no_place_for_bias(path: str) -> SVFError:
    """The error for a bias that is trained where the base model has none."""
    return SVFError(
        f"{path} has no bias in the base model, so that neither vLLM nor a merged model has a place for the trained "
        "one: set biases: false, or use_vllm: false"
    )


def beside_multipliers(config: SVFConfig) -> str:
    """What makes an adapter more than multipliers of singular values, in a message."""
    return "biases: true" if config.biases else f"core: {config.core}"


def _describe_combination(combination: Mapping[str, Any]) -> str:
    names, rows = [Path(name).name for name in combination["experts"]], combination["alpha"]
    formula = "1 + Σ α (m − 1)" if combination.get("form") == "deviation" else "Σ α m"
    text = f"`m = {formula}` over the experts {code(names)}, with α per `{combination.get('scope', 'global')}`"
    if len(rows) > 16:
        return f"{text}: {len(rows)} rows, in `adapter_config.json`."
    return f"{text}:\n\n" + markdown_table(names, [[f"{value:.4g}" for value in row] for row in rows])


KIND = SVFKind("svf", "SVF")
