"""`svf-rl export`."""

import argparse

from svf_rl.cli.evaluation import ANSWERING, add_evaluation, read_evaluation
from svf_rl.cli.flags import Command
from svf_rl.errors import SVFError
from svf_rl.export.gguf import TYPES

FORMATS = {
    "safetensors": "the merged model, for transformers, vLLM and what converts from them",
    "peft-lora": "a LoRA of --rank, for engines that only know LoRA",
    "gguf": "the merged model in one file for llama.cpp",
    "ollama": "that file and a Modelfile",
}
_ROWS = 200
"""Of the task, for the certificate."""


def _fill(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--expert", required=True, metavar="DIR", help="a saved adapter")
    formats = "; ".join(f"{name}: {text}" for name, text in FORMATS.items())
    add("--format", choices=FORMATS, required=True, help=formats)
    add("--rank", type=int, help="peft-lora: of the LoRA (default: 16)")
    add("--stored-as", choices=TYPES, help="gguf, ollama: type of the matrices (default: q8_0)")
    add("--out", required=True, help="folder to write; must be new or empty")
    add("--task", help="whose rows the certificate is about (default: that of the adapter's training)")
    add_evaluation(parser, ANSWERING)


def _run(known: argparse.Namespace) -> None:
    from svf_rl.export.lora import export_lora
    from svf_rl.export.plain import export_plain
    from svf_rl.runs.provenance import list_tasks
    from svf_rl.runs.run_folder import read_summary
    from svf_rl.svf.expert import expert_folder

    if known.rank is not None and known.format != "peft-lora":
        raise SVFError(f"--rank is of --format peft-lora: leave it out for {known.format}")
    if known.stored_as is not None and known.format not in ("gguf", "ollama"):
        raise SVFError(f"--stored-as is of --format gguf and ollama: for {known.format} leave it out (or give --dtype)")
    folder = expert_folder(known.expert)
    trained = [] if known.task else list_tasks(read_summary(folder).recipe)
    if not known.task and not trained:
        raise SVFError(f"{known.expert} does not say what it was trained on: name a --task for the certificate")
    known.limit = _ROWS if known.limit is None else known.limit
    arguments = read_evaluation(known, tasks=[known.task or trained[0]])
    if known.format == "peft-lora":
        rank = 16 if known.rank is None else known.rank
        print(export_lora(str(folder), known.out, rank, arguments))
        print(f"{known.out}: LoRA of rank {rank}")
        return
    print(export_plain(str(folder), known.out, known.format, known.stored_as or "q8_0", arguments))
    print(f"{known.out}: {FORMATS[known.format]}")


EXPORT = Command(
    "export", "write an adapter for engines that do not know SVF, with a certificate of what it does there",
    _fill, _run, "nothing was written",
)  # fmt: skip
