"""`svf-rl export`."""

import argparse

from svf_rl.cli.evaluation import ANSWERING, add_evaluation, read_evaluation
from svf_rl.cli.flags import Command
from svf_rl.errors import SVFError

FORMATS = ("peft-lora",)
_ROWS = 200
"""Of the task, for the certificate."""


def _fill(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--expert", required=True, metavar="DIR", help="a saved SVF adapter")
    add("--format", choices=FORMATS, required=True, help="peft-lora: a LoRA of --rank, for engines that only know LoRA")
    add("--rank", type=int, default=16, help="of the LoRA (default: 16)")
    add("--out", required=True, help="folder to write; must be new or empty")
    add("--task", help="whose rows the certificate is about (default: that of the adapter's training)")
    add_evaluation(parser, ANSWERING)


def _run(known: argparse.Namespace) -> None:
    from svf_rl.export.lora import export_lora
    from svf_rl.runs.provenance import list_tasks
    from svf_rl.runs.run_folder import read_summary
    from svf_rl.svf.expert import expert_folder

    folder = expert_folder(known.expert)
    trained = [] if known.task else list_tasks(read_summary(folder).recipe)
    if not known.task and not trained:
        raise SVFError(f"{known.expert} does not say what it was trained on: name a --task for the certificate")
    known.limit = known.limit or _ROWS
    arguments = read_evaluation(known, tasks=[known.task or trained[0]])
    print(export_lora(str(folder), known.out, known.rank, arguments))
    print(f"{known.out}: LoRA of rank {known.rank}")


EXPORT = Command(
    "export", "write an adapter for engines that do not know SVF, with a certificate of what it does there",
    _fill, _run, "nothing was written",
)  # fmt: skip
