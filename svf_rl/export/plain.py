"""`svf-rl export --format safetensors | gguf | ollama`: an adapter merged into its base model, with a certificate."""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from svf_rl.evaluation.arguments import EvaluationArguments
from svf_rl.evaluation.base_model import BaseModel, find_base_model
from svf_rl.evaluation.items import TaskItems, check_lengths, load_items
from svf_rl.experts.merged import merge
from svf_rl.export.certificate import (
    CERTIFICATE,
    Certificate,
    Expected,
    OfEngine,
    Rounding,
    accuracy,
    compare,
    rounding,
)
from svf_rl.export.engines import LlamaCppEngine, TransformersEngine, VllmEngine, has_llama_cpp
from svf_rl.export.gguf.file import check_writable_as_gguf, stored_matrices, write_gguf
from svf_rl.export.gguf.vocabulary import end_tokens
from svf_rl.export.ollama import write_modelfile
from svf_rl.generation.weights import adapted_weights, as_stored, tied_embeddings
from svf_rl.models.arguments import ModelArguments
from svf_rl.models.kinds import load_saved
from svf_rl.models.loading import load_base
from svf_rl.storage.files import write_json
from svf_rl.storage.folders import check_new, new_folder
from svf_rl.svf.expert import expert_folder
from svf_rl.svf.stored_weights import StoredWeights, local_folder

FILE = "model.gguf"
"""Of the formats gguf and ollama."""


def export_plain(
    expert: str, out: str | Path, format: str, stored_as: str, arguments: EvaluationArguments
) -> Certificate:
    """
    Write the merged model, ask the engines for which it is made what the adapter is asked, and write what came out.

    Args:
        expert (`str`): Folder or Hub name of an SVF or LoRA adapter.
        out (`str` or `Path`): The folder to write; it must be free or empty.
        format (`str`): `safetensors`: a folder as transformers and vLLM read it, in the type `arguments.dtype`; `gguf`:
            one file for llama.cpp; `ollama`: that file and a `Modelfile`.
        stored_as (`str`): The type of a GGUF file's matrices, of `svf_rl.export.gguf.TYPES`.
        arguments ([`EvaluationArguments`]): Base model, one task for the certificate, and what generates.

    Raises:
        SVFError: bad input, or a model that the format cannot hold. Nothing is left behind.
    """
    out = Path(out).expanduser()
    check_new(out)
    folder = expert_folder(expert)
    base = find_base_model(arguments)
    if format != "safetensors":
        check_writable_as_gguf(base.config)
    items = load_items(arguments.tasks[0], arguments, base.tokenizer)
    length = check_lengths([items], base.positions)
    with new_folder(out) as staging:
        if format == "safetensors":
            stored_as = merge(_plain(arguments, arguments.dtype), [str(folder)], staging).dtype
        else:
            _write_gguf(arguments, folder, staging, stored_as)
            if format == "ollama":
                _write_ollama(base, staging)
        expected, rounded = _of_the_adapter(arguments, base, folder, staging, items)
        graded = partial(accuracy, base.tokenizer, items)
        engines: list[OfEngine] = []
        for engine, equal_prompts in _engines(arguments, base, staging, items, length, stored_as):
            engines.append(compare(engine, expected, items.prompt_ids, items.sampling.greedy(), graded, equal_prompts))
            del engine  # before the next one stands
        certificate = Certificate(
            format,
            stored_as,
            sum(path.stat().st_size for suffix in ("safetensors", "gguf") for path in staging.glob(f"*.{suffix}")),
            rounded,
            items.name,
            len(items.rows),
            graded(expected.answers),
            engines,
        )
        write_json(staging / CERTIFICATE, {"base_model": arguments.model, **asdict(certificate)})
    return certificate


def _plain(arguments: EvaluationArguments, dtype: Any) -> ModelArguments:
    return ModelArguments(arguments.model, dtype=dtype, trust_remote_code=arguments.trust_remote_code)


def _ends(base: BaseModel) -> list[int]:
    folder, _ = local_folder(base.arguments.location, base.arguments.model_revision)
    return end_tokens(base.tokenizer, folder)


def _write_gguf(arguments: EvaluationArguments, adapter: Path, staging: Path, stored_as: str) -> None:
    """Merged in fp32, so that each weight is rounded once."""
    merged = staging / "merged"
    merge(_plain(arguments, "float32"), [str(adapter)], merged)
    write_gguf(merged, staging / FILE, stored_as)
    shutil.rmtree(merged)


def _write_ollama(base: BaseModel, staging: Path) -> None:
    if not write_modelfile(staging, FILE, base.tokenizer, _ends(base), base.positions or 2048):
        print(
            "note: the chat template is of a form that Ollama's language cannot say: TEMPLATE was left out of the "
            "Modelfile, and Ollama takes what it makes of the file's own",
            file=sys.stderr,
        )


def _of_the_adapter(
    arguments: EvaluationArguments, base: BaseModel, folder: Path, staging: Path, items: TaskItems
) -> tuple[Expected, Rounding]:
    """What the adapter answers in fp32, and what the written weights lost of it."""
    exact = _plain(arguments, "float32")
    model: Any = load_saved(load_base(exact), exact, folder, "default").requires_grad_(False)
    changed = _changed(model, exact)
    if (staging / FILE).is_file():
        rounded = rounding(stored_matrices(staging / FILE, base.config, changed))
    else:
        stored = StoredWeights(str(staging), staging)
        rounded = rounding(
            (weight, tuned, weight.to(there.dtype), there)
            for name, weight, tuned in changed
            for there in [stored.read(name)]
        )
    engine = TransformersEngine(model, base.tokenizer, _ends(base))
    return Expected.of(engine, items.prompt_ids, items.sampling.greedy()), rounded


def _changed(model: Any, exact: ModelArguments) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, `W` and `W'` of each matrix that the adapter changes, a matrix at a time."""
    folder, _ = local_folder(exact.location, exact.model_revision)
    base = model.get_base_model()
    there = StoredWeights(exact.location, folder, base.base_model_prefix)
    tied = tied_embeddings(base)
    for whole, weight in adapted_weights(model):
        for name, tuned in as_stored(model, whole, weight).items():
            # of tied weights the files hold one
            lacks = name in tied and not there.holds(name)
            source = next(filter(there.holds, tied), name) if lacks else name
            yield name, there.read(source).float(), tuned


def _engines(
    arguments: EvaluationArguments, base: BaseModel, staging: Path, items: TaskItems, length: int, stored_as: str
) -> Iterator[tuple[Any, float | None]]:
    """Each engine with the written model, and for one that reads prompts itself how many it reads alike."""
    if not (staging / FILE).is_file():
        model = AutoModelForCausalLM.from_pretrained(staging, trust_remote_code=arguments.trust_remote_code)
        yield TransformersEngine(model, base.tokenizer, _ends(base)), None
        del model
        if arguments.backend == "vllm":
            own = replace(_plain(arguments, stored_as), model_name_or_path=str(staging))
            yield VllmEngine(own, arguments, min(length + 1, base.positions or length + 1)), None
        return
    model = AutoModelForCausalLM.from_pretrained(staging, gguf_file=FILE, dtype=torch.float32)
    yield TransformersEngine(model, base.tokenizer, _ends(base)), None
    del model
    if not has_llama_cpp():
        print("note: llama.cpp was not asked: pip install 'svf-rl[llama-cpp]'", file=sys.stderr)
        return
    engine = LlamaCppEngine(staging / FILE, length, base.tokenizer, _ends(base))
    same = [engine.reads(text) == base.tokenizer(text, add_special_tokens=False)["input_ids"] for text in items.prompts]
    yield engine, sum(same) / len(same)
