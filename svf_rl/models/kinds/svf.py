"""SVF: the singular values of each weight are scaled by a trained vector."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig
from torch import Tensor, nn

from svf_rl.markdown import code, markdown_table
from svf_rl.models.kinds.kind import AdapterKind, named_targets
from svf_rl.svf import SVFConfig, SVFLinear
from svf_rl.svf.checkpoint import decompose_checkpoint
from svf_rl.svf.decompose import Factors
from svf_rl.svf.expert import Expert, read_expert
from svf_rl.svf.merge import rebuild_bytes
from svf_rl.svf.model import SVFModel
from svf_rl.svf.probe import Projections
from svf_rl.svf.targets import logical_weight, target_regex

if TYPE_CHECKING:
    from svf_rl.models.arguments import AdapterArguments, ModelArguments

# What a recipe says of an adapter, by the names of SVFConfig.
SETTINGS = (
    "target_modules", "exclude_modules", "layers_to_transform", "modules_to_save", "parameterization",
    "max_multiplier", "renormalize", "init", "init_mean", "init_std",
)  # fmt: skip


class SVFKind(AdapterKind):
    """`W' = U diag(s·m(z)) Vᵀ`; `z` is trained. [`svf_rl.svf.SVFConfig`] explains the options. An adapter that was
    combined from others, with weights found by a search or by training, is one of this kind too."""

    title = "singular value fine-tuning (SVF)"
    limits = (
        "The adapter fits the weights that it was trained on and no others: loading it onto another base model, or "
        "another revision, is refused.",
    )
    import_line = "import svf_rl.svf  # registers SVF with PEFT"
    same_as_saved = ("target_modules", "parameterization", "max_multiplier", "renormalize")
    rebuild_bytes = staticmethod(rebuild_bytes)

    def config(self, arguments: "AdapterArguments") -> SVFConfig:
        return SVFConfig(task_type="CAUSAL_LM", **{name: getattr(arguments, name) for name in SETTINGS})

    def describe(self, arguments: "AdapterArguments") -> str:
        renormalized = ", renormalized" if arguments.renormalize else ""
        return f"SVF on {arguments.target_modules}, {arguments.parameterization}{renormalized}"

    def trained_values(self, config: PeftConfig, shapes: Sequence[tuple[int, ...]]) -> int:
        return sum(min(shape) for shape in shapes)

    def prepare(self, model: "ModelArguments", config: PeftConfig, dtype: torch.dtype) -> None:
        """Puts the factors of the targeted weights into the cache, a matrix at a time, where injecting the adapter
        finds them."""
        self.decompose(model, config, dtype)

    def decompose(self, model: "ModelArguments", config: PeftConfig, dtype: torch.dtype) -> dict[str, str]:
        """Does so, and returns of each adapted matrix the path in the model's files, and the fingerprint that its
        factors are stored by."""
        index = decompose_checkpoint(
            model.location,
            target_regex(config.target_modules),
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

    def put_on_empty(
        self, model: Any, matrices: Sequence[str], config: PeftConfig, arguments: "AdapterArguments"
    ) -> nn.Module:
        for name in matrices:
            module = model.get_submodule(name)
            rows, columns = logical_weight(module).shape
            r, dtype = min(rows, columns), module.weight.dtype
            U, Vt = torch.empty(rows, r, dtype=dtype), torch.empty(r, columns, dtype=dtype)
            empty = Factors(U, torch.empty(r, dtype=torch.float32), Vt)
            layer = SVFLinear(module, empty, "", Projections(*(torch.empty(0) for _ in range(4))))
            layer.update_layer("default", config)
            layer.requires_grad_(False)
            layer.svf_z.requires_grad_(True)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)
        for name, module in list(model.named_modules()):
            if name.rpartition(".")[2] in (config.modules_to_save or []):
                module.requires_grad_(True)  # a copy of the module, which takes its place
        return model

    def frozen_bytes(
        self, shapes: Sequence[tuple[int, int]], itemsize: int, arguments: "AdapterArguments"
    ) -> dict[str, int]:
        """`U` (out, r) and `Vt` (r, in) in the model's type, and `s` (r,) in fp32."""
        ranks = [min(shape) for shape in shapes]
        factors = sum(r * sum(shape) for r, shape in zip(ranks, shapes, strict=True)) * itemsize
        return {"factors": factors, "singular_values": 4 * sum(ranks)}

    def label(self, config: Mapping[str, Any]) -> str:
        return "SVF combination" if config.get("combination") else "SVF"

    def describe_saved(self, config: Mapping[str, Any]) -> str:
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
        return None if config.get("modules_to_save") else read_expert(folder, name)

    def count_values(self, folder: Path, config: Mapping[str, Any]) -> int:
        """Of a combination its weights α, else `z` and whole modules."""
        if config.get("combination"):
            return sum(len(row) for row in config["combination"]["alpha"])
        return super().count_values(folder, config)


def _describe_combination(combination: Mapping[str, Any]) -> str:
    names, rows = [Path(name).name for name in combination["experts"]], combination["alpha"]
    formula = "1 + Σ α (m − 1)" if combination.get("form") == "deviation" else "Σ α m"
    text = f"`m = {formula}` over the experts {code(names)}, with α per `{combination.get('scope', 'global')}`"
    if len(rows) > 16:
        return f"{text}: {len(rows)} rows, in `adapter_config.json`."
    return f"{text}:\n\n" + markdown_table(names, [[f"{value:.4g}" for value in row] for row in rows])


KIND = SVFKind("svf", "SVF")
