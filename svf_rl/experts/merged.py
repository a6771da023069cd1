"""`svf-rl merge`: a base model and an adapter, or a combination of experts, as one plain model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.utils.hub import convert_file_size_to_int

from svf_rl.errors import SVFError, one_line
from svf_rl.experts.arguments import MergeArguments
from svf_rl.generation.weights import adapted_weights
from svf_rl.models.arguments import ModelArguments
from svf_rl.models.kinds import load_saved
from svf_rl.models.loading import load_base, load_tokenizer
from svf_rl.runs.run_folder import read_adapter_config, read_summary
from svf_rl.storage.folders import check_new, check_space, new_folder
from svf_rl.storage.path_names import path_names
from svf_rl.svf.combine import assign_groups, check_form, check_weights, even_weights
from svf_rl.svf.expert import check_same_base, expert_folder, read_expert

MIXED = "merged"
"""The name of the combination among the adapters of the loaded model."""


@dataclass(frozen=True)
class Merged:
    """What was written: the folder, the type of its weights, how many matrices were changed, and bytes in all."""

    folder: Path
    dtype: str
    matrices: int
    bytes: int


def merge(
    model: ModelArguments,
    experts: Sequence[str],
    out: str | Path,
    arguments: MergeArguments | None = None,
) -> Merged:
    """
    Write a full Hugging Face model: configuration, generation configuration, tokenizer, chat template and weights.

    Each changed weight is `W' = W + U diag(s·(m − 1)) Vᵀ`, rebuilt from the untouched `W` and rounded once, the same
    that the rollouts of the training came from; the others are those of the base, bit by bit.

    Args:
        model ([`ModelArguments`]): the base model. `dtype` is the type to compute with and to save; `auto` is that of
            the experts' training, where their `summary.json` says it, or else that of the base model.
        experts (`Sequence[str]`): folders or Hub names; one SVF or LoRA adapter, or several SVF experts.
        out (`str` or `Path`): the folder to write; it must be free or empty.
        arguments ([`MergeArguments`], *optional*): how several experts are combined, and the size of the files.

    Raises:
        SVFError: a missing or damaged expert, one of another base, weights that do not fit, `out` is taken, no space.
            Nothing is left behind.
    """
    out, arguments = Path(out).expanduser(), arguments or MergeArguments()
    check_new(out)
    _check_shard_size(arguments.max_shard_size)
    folders = [expert_folder(path) for path in experts]
    path_names(folders)  # refuses one that is named twice
    alpha = _checked_weights(folders, arguments)
    adapted = _load(replace(model, dtype=trained_dtype(model, folders)), folders, out)
    tokenizer = load_tokenizer(model)
    if alpha is not None:
        names = list(adapted.peft_config)
        adapted.add_weighted_adapter(
            names, alpha, MIXED, scope=arguments.scope, form=arguments.form, normalized=arguments.normalized
        )
        adapted.set_adapter(MIXED)
    plain, matrices = _merged(adapted)
    _savable(plain)
    with new_folder(out) as staging:
        plain.save_pretrained(staging, max_shard_size=arguments.max_shard_size)
        tokenizer.save_pretrained(staging)
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    return Merged(out, str(plain.dtype).removeprefix("torch."), matrices, size)


def _check_shard_size(size: str) -> None:
    try:
        convert_file_size_to_int(size)
    except ValueError as error:
        raise SVFError(f"max_shard_size must be a number with a unit, such as 5GB or 500MB, not {size!r}") from error


def _checked_weights(folders: Sequence[Path], arguments: MergeArguments) -> Tensor | None:
    """α as (groups, K); `None` for one adapter. Reads the experts' files, and no model yet."""
    for folder in folders:
        read_adapter_config(folder)
    if not folders:
        raise SVFError("name at least one expert")
    if len(folders) == 1:
        if arguments.weights is not None:
            raise SVFError("weights are for several experts: name more of them, or leave the weights out")
        return None
    check_form(arguments.form)
    read = [read_expert(folder) for folder in folders]
    check_same_base(read)
    groups = max(assign_groups(list(read[0].z), arguments.scope)) + 1
    weights = even_weights(len(read), groups) if arguments.weights is None else arguments.weights
    return check_weights(weights, len(read), groups, arguments.normalized)


def trained_dtype(model: ModelArguments, folders: Sequence[Path]) -> Any:
    """That of the experts' training: what their fingerprints and their accuracies hold for."""
    trained = {read_summary(folder).recipe.get("dtype", "auto") for folder in folders}
    return trained.pop() if model.dtype == "auto" and len(trained) == 1 else model.dtype


def _load(model: ModelArguments, folders: Sequence[Path], out: Path) -> PeftModel:
    loaded: Any = load_base(model)
    check_space(out, sum(p.numel() * p.element_size() for p in loaded.parameters()))
    for index, folder in enumerate(folders):
        loaded = load_saved(loaded, model, folder, f"expert_{index}")
    return loaded.eval()


def _merged(adapted: PeftModel) -> tuple[PreTrainedModel, int]:
    """The base model with the changed weights in the place of its own, a matrix at a time, and their number."""
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in adapted.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    whole: dict[str, Tensor] = {}  # of modules that were trained in full
    changed = 0
    with tqdm(total=len(layers), desc="Merging", unit="matrix", delay=3, leave=False) as bar:
        for name, weight in adapted_weights(adapted):
            layer = layers.get(name.removesuffix(".weight"))
            if layer is None:
                whole[name] = weight
            else:  # each W' comes from a W of its own, which nothing needs afterwards
                layer.get_base_layer().weight = nn.Parameter(weight, requires_grad=False)
                bar.update()
            changed += not name.endswith(".bias")
    plain = adapted.unload()
    for name, weight in whole.items():
        holder, _, leaf = name.rpartition(".")
        setattr(plain.get_submodule(holder), leaf, nn.Parameter(weight, requires_grad=False))
    return plain, changed


def _savable(plain: PreTrainedModel) -> None:
    """What would make the files say something else than the model, or keep transformers from writing them."""
    inputs, outputs = plain.get_input_embeddings(), plain.get_output_embeddings()
    config = plain.config.get_text_config()
    if config.tie_word_embeddings and outputs is not None and inputs.weight is not outputs.weight:
        config.tie_word_embeddings = False  # the adapter changed one of the two
    settings = plain.generation_config
    try:
        settings.validate(strict=True)
    except ValueError:  # sampling settings without do_sample, as some published models have
        settings.do_sample = True
        try:
            settings.validate(strict=True)
        except ValueError as error:
            raise SVFError(
                f"transformers does not write the base model's generation_config.json ({one_line(error)}): correct it"
            ) from error
