"""`svf-rl export --format peft-lora`: an SVF adapter as a LoRA of rank k, for engines that only know LoRA."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from tqdm import tqdm

from svf_rl.errors import SVFError
from svf_rl.evaluation.arguments import EvaluationArguments
from svf_rl.evaluation.base_model import find_base_model
from svf_rl.evaluation.items import TaskItems, check_lengths, load_items
from svf_rl.experts.pool import ExpertPool
from svf_rl.export.certificate import CERTIFICATE, COMPARED, accuracy, equal_tokens
from svf_rl.export.picture import draw_rank_curve
from svf_rl.generation import Completion
from svf_rl.models.kinds import load_saved
from svf_rl.models.loading import load_base
from svf_rl.storage.files import write_json
from svf_rl.storage.folders import check_new, new_folder
from svf_rl.svf import svf_layers
from svf_rl.svf.decompose import Factors
from svf_rl.svf.expert import PREFIX, expert_folder, read_expert
from svf_rl.svf.low_rank import low_rank, strongest
from svf_rl.svf.mask import Mask, change_of_singular_values
from svf_rl.svf.vector import SVFVector
from svf_rl.text_table import aligned

PICTURE = "rank_curve.png"
SVF, LORA = "SVF", "LoRA"
_OWN = "svf"


@dataclass(frozen=True)
class OfRank:
    """What a LoRA of this rank leaves: `tail`, the norm of what is left of `W' − W` over its own, of all matrices
    together; and `kl`, the divergence of the adapter's next tokens from its, in nats a token of the first answers."""

    rank: int
    tail: float
    kl: float


@dataclass(frozen=True)
class LoraCertificate:
    """
    What the written LoRA does beside the adapter that it came from, on `items` rows of `task`, answered greedily.

    Args:
        curve (`list[OfRank]`): By rank, up to the whole.
        equal_tokens (`float`): Share of the tokens that are the same, at the same place.
        accuracy (`dict[str, float]`): Of either.
        logit_difference (`float`): The largest between the file, as PEFT loads it, and the SVF adapter with all but its
            strongest values at 1, which is the same function.
    """

    rank: int
    matrices: int
    task: str
    items: int
    backend: str
    curve: list[OfRank]
    equal_tokens: float
    accuracy: dict[str, float]
    logit_difference: float

    def __str__(self) -> str:
        rows = [
            {"rank": str(one.rank), "left of the change": f"{one.tail:.4f}", "KL (nats a token)": f"{one.kl:.2e}"}
            for one in self.curve
        ]
        found = ", ".join(f"{name} {value:.3f}" for name, value in self.accuracy.items())
        return (
            f"{aligned(rows)}\n\nrank {self.rank}, {self.matrices} matrices, {self.items} rows of {self.task} "
            f"({self.backend}): {self.equal_tokens:.1%} of the greedy tokens are equal; accuracy {found}; "
            f"largest logit difference of the file {self.logit_difference:.1e}"
        )


def export_lora(expert: str, out: str | Path, rank: int, arguments: EvaluationArguments) -> LoraCertificate:
    """
    Write the best LoRA of a rank, as PEFT and vLLM read it, with its certificate.

    Args:
        expert (`str`): Folder or Hub name of the SVF adapter.
        out (`str` or `Path`): The folder to write; it must be free or empty.
        rank (`int`): Of the LoRA.
        arguments ([`EvaluationArguments`]): Base model, one task for the certificate, and what generates.

    Raises:
        SVFError: bad input, or an adapter that does not fit the model. Nothing is left behind.
    """
    out = Path(out).expanduser()
    check_new(out)
    folder = expert_folder(expert)
    ranks = [len(z) for z in read_expert(folder).z.values()]  # refuses what a LoRA could not hold
    if not 1 <= rank <= max(ranks):
        raise SVFError(f"--rank must be from 1 to {max(ranks)}, that of the adapter's largest matrix, not {rank}")
    base = find_base_model(arguments)
    items = load_items(arguments.tasks[0], arguments, base.tokenizer)
    model: Any = load_saved(load_base(base.arguments), base.arguments, folder, _OWN).eval()
    deltas = {path: _made_direct(layer) for path, layer in svf_layers(model).items()}
    with new_folder(out) as staging:
        _write(model, deltas, rank, base.arguments, staging)
        folders = {SVF: str(folder), LORA: str(staging)}
        length = check_lengths([items], base.positions)
        answers = _answers(ExpertPool(base.arguments, {}, folders, engine=arguments, max_length=length), items)
        prompts = items.prompt_ids[:COMPARED]
        texts = [prompt + done.token_ids for prompt, done in zip(prompts, answers[SVF][:COMPARED], strict=True)]
        curve = _curve(model, deltas, rank, texts, [len(prompt) for prompt in prompts])
        certificate = LoraCertificate(
            rank=rank,
            matrices=len(deltas),
            task=items.name,
            items=len(items.rows),
            backend=arguments.backend,
            curve=curve,
            equal_tokens=equal_tokens(answers[SVF], answers[LORA]),
            accuracy={name: accuracy(base.tokenizer, items, done) for name, done in answers.items()},
            logit_difference=_logit_difference(model, deltas, rank, base.arguments, staging, texts),
        )
        draw_rank_curve(curve, rank, staging / PICTURE)
        write_json(staging / CERTIFICATE, {"format": "peft-lora", "base_model": arguments.model, **asdict(certificate)})
    return certificate


def _made_direct(layer: Any) -> Tensor:
    """`s·(m − 1)` (r,) of the adapter, in fp64; its `z` is the multiplier itself from now on, so that each value of it
    stands for one direction."""
    delta = change_of_singular_values(layer.svf_factors.s, layer.masks_and_z([_OWN]))
    multiplier = layer.multiplier(_OWN).detach().clone()
    layer.svf_mask[_OWN], layer.svf_z[_OWN] = Mask(), SVFVector(multiplier)
    return delta


def _write(model: PeftModel, deltas: Mapping[str, Tensor], rank: int, base: Any, folder: Path) -> None:
    layers = svf_layers(model)
    paths = [path.removeprefix(PREFIX) for path in deltas]
    config = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=rank, target_modules=paths, base_model_name_or_path=base.location
    )
    adapted = get_peft_model(load_base(base), config)
    with torch.no_grad():
        for path, delta in tqdm(deltas.items(), unit="matrix", desc="LoRA", leave=False):
            layer = layers[path]
            B, A = low_rank(Factors(*layer.svf_factors.tensors()), delta, rank)
            target: Any = adapted.get_submodule(path)
            target.lora_A["default"].weight.data = A
            target.lora_B["default"].weight.data = B
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's, which says nothing of it


def _answers(pool: ExpertPool, items: TaskItems) -> dict[str, list[Completion]]:
    greedy, seeds = items.sampling.greedy(), [0] * len(items.prompt_ids)
    found = {}
    for name in (SVF, LORA):
        pool.use(name)
        found[name] = pool.generate(items.prompt_ids, greedy, seeds)
    return found


def _curve(
    model: PeftModel, deltas: Mapping[str, Tensor], rank: int, texts: Sequence[list[int]], starts: Sequence[int]
) -> list[OfRank]:
    largest = max(map(len, deltas.values()))
    ranks = sorted({rank, largest, *(2**i for i in range(largest.bit_length()) if 2**i < largest)})
    total = sum(delta.square().sum().item() for delta in deltas.values())
    kls: dict[int, list[Tensor]] = {one: [] for one in ranks}
    for text, start in zip(tqdm(texts, unit="answer", desc="curve", leave=False), starts, strict=True):
        logps = _logps(model, text, start)  # of the whole vocabulary: of one answer at a time
        for one in ranks:
            with _truncated(model, deltas, one):
                kls[one].append((logps.exp() * (logps - _logps(model, text, start))).sum(1))
    found = []
    for one in ranks:
        left = sum(delta.square().sum() - delta[strongest(delta, one)].square().sum() for delta in deltas.values())
        tail = math.sqrt(max(float(left), 0.0) / total) if total else 0.0
        found.append(OfRank(one, tail, torch.cat(kls[one]).mean().item()))
    return found


@torch.no_grad()
def _logps(model: PeftModel, text: list[int], start: int) -> Tensor:
    """Of every token (completion, vocabulary) at each place of the completion, fp32."""
    logits = model(input_ids=torch.tensor([text], device=model.device)).logits[0, start - 1 : -1]
    return logits.float().log_softmax(1)


@contextmanager
def _truncated(model: PeftModel, deltas: Mapping[str, Tensor], rank: int) -> Iterator[None]:
    """Within it the adapter on the model is its best part of a rank."""
    layers = svf_layers(model)
    whole = {path: layers[path].svf_z[_OWN].weight.data for path in deltas}
    try:
        for path, delta in deltas.items():
            kept, truncated = strongest(delta, rank), torch.ones_like(whole[path])
            truncated[kept] = whole[path][kept]
            layers[path].svf_z[_OWN].weight.data = truncated
        yield
    finally:
        for path, z in whole.items():
            layers[path].svf_z[_OWN].weight.data = z


def _logit_difference(
    model: PeftModel, deltas: Mapping[str, Tensor], rank: int, base: Any, folder: Path, texts: Sequence[list[int]]
) -> float:
    lora = load_saved(load_base(base), base, folder, "default").eval()
    with _truncated(model, deltas, rank), torch.no_grad():
        return max(
            (model(input_ids=ids).logits - lora(input_ids=ids).logits).abs().max().item()
            for ids in (torch.tensor([text]) for text in texts)
        )
