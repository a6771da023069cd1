"""`svf-rl experts`, `merge`, `extract` and `push`: saved adapters."""

import argparse
import json
from dataclasses import asdict

from svf_rl.cli.flags import Command, add_experts, add_flags, read_flags


def _fill_experts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", metavar="DIR", help="a saved adapter: folder or Hub name")
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")


def _experts(known: argparse.Namespace) -> None:
    from svf_rl.experts.table import experts_table

    table = experts_table(known.folders)
    print(json.dumps(asdict(table), indent=2, ensure_ascii=False) if known.json else table)


def _fill_merge(parser: argparse.ArgumentParser) -> None:
    from svf_rl.experts.arguments import MergeArguments
    from svf_rl.models.base import ModelArguments

    add = parser.add_argument
    add("model", help="local folder or Hub name of the base model; 'quickstart' is the bundled model")
    add_experts(parser, "DIR", "a saved SVF or LoRA adapter; several SVF experts are combined", required=True)
    add("--out", required=True, help="folder to write; must be new or empty")
    add_flags(parser, MergeArguments)
    add_flags(
        parser,
        ModelArguments,
        ["dtype", "trust_remote_code"],
        dtype={"help": "of the weights (default: as in the experts' training, or else as in the base model)"},
    )
    add("--revision", help="branch, tag or commit of the base model on the Hub")


def _merge(known: argparse.Namespace) -> None:
    from svf_rl.experts.arguments import MergeArguments
    from svf_rl.experts.merged import merge
    from svf_rl.models.arguments import ModelArguments

    model = read_flags(known, ModelArguments, model_name_or_path=known.model, model_revision=known.revision)
    merged = merge(model, known.experts, known.out, read_flags(known, MergeArguments))
    print(f"{merged.folder}: {merged.matrices} weights changed, {merged.dtype}, {merged.bytes / 1e6:.1f} MB")
    if merged.dtype == "float32":
        print("note: vLLM runs float32 models in half precision unless it is given --dtype float32")


def _fill_extract(parser: argparse.ArgumentParser) -> None:
    from svf_rl.models.base import ModelArguments

    parser.add_argument("model", help="the base model: local folder or Hub name; 'quickstart' is the bundled model")
    parser.add_argument("tuned", help="a model that was made from it, in any way")
    parser.add_argument("--out", required=True, help="folder of the adapter; must be new or empty")
    parser.add_argument(
        "--targets", default="mlp", help="mlp, attention, mlp+attention, or a regular expression (default: mlp)"
    )
    add_flags(parser, ModelArguments, ["dtype", "trust_remote_code"], dtype={"help": "of the base model's weights"})
    parser.add_argument("--revision", help="branch, tag or commit of the base model on the Hub")


def _extract(known: argparse.Namespace) -> None:
    from svf_rl.experts.extract import extract
    from svf_rl.models.base import ModelArguments

    model = read_flags(known, ModelArguments, model_name_or_path=known.model, model_revision=known.revision)
    print(extract(model, known.tuned, known.out, known.targets))


def _fill_push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", metavar="DIR", help="a saved adapter")
    parser.add_argument("target", help="OWNER/NAME on the Hub, or a folder, as in ./NAME")
    parser.add_argument("--base-model", help="the base model's name on the Hub, where it was loaded from a folder")
    parser.add_argument("--to-folder", action="store_true", help="the target is a folder whatever it looks like")
    parser.add_argument("--private", action="store_true", help="a new repository on the Hub is private")


def _push(known: argparse.Namespace) -> None:
    from svf_rl.experts.publish import publish

    published = publish(
        known.adapter, known.target, base_model=known.base_model, to_folder=known.to_folder, private=known.private
    )
    for note in published.notes:
        print(f"note: {note}")
    print(f"{published.where}: {', '.join(published.files)}")


EXPERTS = Command(
    "experts", "compare saved adapters: task, accuracy, size, multipliers, similarity", _fill_experts, _experts
)
MERGE = Command(
    "merge", "write a plain model: a base model with an adapter or several experts", _fill_merge, _merge,
    "nothing was written",
)  # fmt: skip
PUSH = Command("push", "publish an adapter with its model card, on the Hub or into a folder", _fill_push, _push)
EXTRACT = Command(
    "extract", "write the SVF adapter that is nearest to a tuned model, and say how much of it that is",
    _fill_extract, _extract, "nothing was written",
)  # fmt: skip
