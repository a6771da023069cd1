"""An evaluation from its arguments to its results."""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from svf_rl import __version__
from svf_rl.errors import SVFError
from svf_rl.evaluation.adapters import BASE, Adapter, find_adapters, model_fingerprint
from svf_rl.evaluation.arguments import EvaluationArguments
from svf_rl.evaluation.engine import Engine, base_model, load_config, positions
from svf_rl.evaluation.folder import ResultFolder, Settings
from svf_rl.evaluation.items import TaskItems, load_items
from svf_rl.evaluation.records import Record, append_records, mend, read_records
from svf_rl.evaluation.summary import Result, summarize
from svf_rl.generation import Completion, Sampling, cut_at_stop, sample_seed
from svf_rl.models.arguments import ModelArguments
from svf_rl.models.loading import load_tokenizer
from svf_rl.storage.files import write_json

Key = tuple[int, int]
"""Item and sample."""


@dataclass(frozen=True)
class Run:
    """One model on one task: the base model for `adapter=None`. `keys` are all completions that are wanted."""

    adapter: Adapter | None
    task: TaskItems
    keys: list[Key]

    @property
    def label(self) -> str:
        return BASE if self.adapter is None else self.adapter.label

    def of_these(self, records: Sequence[Record], path: Path) -> list[Record]:
        """Those of the records that are wanted here. Raises `SVFError` when they are of other items."""
        wanted = set(self.keys)
        kept = [record for record in records if record.key in wanted and not record.infrastructure]
        for record in kept:
            if record.prompt != self.task.prompts[record.index]:
                raise SVFError(f"{path}: item {record.index} has another prompt now; give another --out")
            if not self.task.grader.same_reference(record.reference, self.task.rows[record.index]):
                raise SVFError(f"{path}: item {record.index} has another answer now; give another --out")
        return sorted(kept, key=lambda record: record.key)

    def pending(self, done: Sequence[Record]) -> list[Key]:
        """The completions that are still to be made."""
        had = {record.key for record in done}
        return [key for key in self.keys if key not in had]


def evaluate(arguments: EvaluationArguments) -> list[Result]:
    """
    Let the base model and each adapter do the tasks, and write what came out to the folder `out`.

    Completions that an earlier call with the same settings has graded are taken from there.

    Returns:
        `list[Result]`: task by task, the base model first.

    Raises:
        SVFError: bad input. All of it is checked before anything is written.
    """
    started = time.perf_counter()
    config = load_config(arguments)
    model = base_model(arguments, config)
    adapters = find_adapters(arguments.adapters)
    tokenizer = load_tokenizer(model)
    tasks = [load_items(name, arguments, tokenizer) for name in arguments.tasks]
    length = check_lengths(tasks, positions(config))
    runs = [
        Run(adapter, task, list(itertools.product(range(len(task.rows)), range(arguments.samples))))
        for adapter in (None, *adapters)
        for task in tasks
    ]
    fingerprint = model_fingerprint(model.location, config)
    settings = {f"{run.label}/{run.task.file}": _settings(arguments, model, fingerprint, run) for run in runs}
    folder = ResultFolder(
        Path(arguments.out or f"runs/eval-{Path(arguments.model).resolve().name}").expanduser(), settings
    )

    unfinished = [run for run in runs if run.pending(_earlier(run, folder))]
    engine = None
    if unfinished:
        used = [adapter for adapter in adapters if any(run.adapter is adapter for run in unfinished)]
        engine = Engine(arguments, model, used, tokenizer, length)
    records: dict[tuple[str, str], list[Record]] = {}
    results = []
    with folder.writing():
        for run in runs:
            start = time.perf_counter()
            path = folder.records(run.label, run.task.file)
            done = run.of_these(mend(path), path)
            made = finish(run, done, path, engine, tokenizer, arguments)
            records[run.label, run.task.name] = made
            results.append(
                summarize(
                    run.label, run.task.name, run.task.metric, made, arguments.k or [1],
                    seconds=time.perf_counter() - start,
                    reused=len(done),
                    base=None if run.adapter is None else records[BASE, run.task.name],
                )
            )  # fmt: skip
        order = {task.name: place for place, task in enumerate(tasks)}
        results.sort(key=lambda result: order[result.task])
        write_json(
            folder.path / "summary.json",
            {
                "model": arguments.model,
                "adapters": {adapter.label: str(adapter.folder) for adapter in adapters},
                "confidence": 0.95,
                "results": [result.to_dict() for result in results],
                "seconds": round(time.perf_counter() - started, 2),
                "settings": settings,
                "version": __version__,
            },
        )
    return results


def finish(
    run: Run,
    done: Sequence[Record],
    path: Path,
    engine: Engine | None,
    tokenizer: PreTrainedTokenizerBase,
    arguments: EvaluationArguments,
) -> list[Record]:
    """All records of a run: those that are done, and the others, which are made and written a batch at a time."""
    records, pending = list(done), run.pending(done)
    if not pending:
        return records
    assert engine is not None
    engine.use(run.adapter)
    assert arguments.batch_size is not None
    title = f"{run.task.name}, {run.label}"
    with tqdm(total=len(run.keys), initial=len(done), desc=title, unit="completion", dynamic_ncols=True) as bar:
        for batch in _batches(pending, arguments.samples, arguments.batch_size):
            made = make_records(run.task, batch, engine, tokenizer, arguments.seed)
            append_records(path, made)
            records += made
            scorable = [record.correct for record in records if record.correct is not None]
            bar.set_postfix_str(f"correct {sum(scorable) / max(1, len(scorable)):.3f}", refresh=False)
            bar.update(len(made))
    return sorted(records, key=lambda record: record.key)


class Generator(Protocol):
    """What completes prompts."""

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """One completion a prompt, in order."""


def make_records(
    task: TaskItems, batch: Sequence[Key], generator: Generator, tokenizer: PreTrainedTokenizerBase, seed: int
) -> list[Record]:
    """Generate and grade one batch of (item, sample)."""
    seeds = [sample_seed(seed, f"evaluation/{task.name}", index, sample) for index, sample in batch]
    completions = generator.generate([task.prompt_ids[index] for index, _ in batch], task.sampling, seeds)
    token_ids = [completion.token_ids for completion in completions]
    decoded = tokenizer.batch_decode(token_ids, skip_special_tokens=True)
    texts = [cut_at_stop(text, task.sampling.stop) for text in decoded]
    rows = [task.rows[index] for index, _ in batch]
    verdicts = task.grader.grade(rows, texts, token_ids)
    return [
        Record(
            index=index,
            sample=sample,
            prompt=task.prompts[index],
            completion=text,
            reference=task.grader.reference(row),
            extracted=verdict.extracted,
            correct=verdict.correct,
            score=verdict.value,
            reason=verdict.reason,
            infrastructure=verdict.infrastructure,
            tokens=len(completion.token_ids),
            finished=completion.finished,
        )
        for (index, sample), row, completion, text, verdict in zip(
            batch, rows, completions, texts, verdicts, strict=True
        )
    ]


def _batches(pending: Sequence[Key], samples: int, size: int) -> Iterator[list[Key]]:
    """The pending completions by where they stand among all, so that a resumed run cuts the same batches."""
    for _, group in itertools.groupby(pending, key=lambda key: (key[0] * samples + key[1]) // size):
        yield list(group)


def _earlier(run: Run, folder: ResultFolder) -> list[Record]:
    path = folder.records(run.label, run.task.file)
    return run.of_these(read_records(path), path)


def check_lengths(tasks: Sequence[TaskItems], limit: int | None) -> int:
    """The longest prompt with its completion, in tokens, as far as the model reaches."""
    return max(room(f"task {t.name}, item", t.prompt_ids, t.sampling.max_tokens, limit) for t in tasks)


def room(what: str, prompts: Sequence[list[int]], max_tokens: int, limit: int | None) -> int:
    """Tokens that the longest prompt takes with `max_tokens` more, as far as the model reaches. Raises `SVFError` for a
    prompt that leaves no room for any."""
    for index, ids in enumerate(prompts):
        if limit is not None and len(ids) >= limit:
            raise SVFError(
                f"{what} {index}: the prompt has {len(ids)} tokens, and the model takes {limit}, completion included: "
                "use a model with a longer context"
            )
    length = max(map(len, prompts)) + max_tokens
    return length if limit is None else min(length, limit)


def _settings(arguments: EvaluationArguments, model: ModelArguments, fingerprint: str, run: Run) -> Settings:
    """What decides the completions and their grades. Records made with other settings are not mixed with new ones."""
    sampled = run.task.sampling.temperature > 0
    return {
        "model": arguments.model,
        "model_fingerprint": fingerprint,
        "adapter": None if run.adapter is None else str(run.adapter.folder),
        "adapter_fingerprint": None if run.adapter is None else run.adapter.fingerprint,
        "task": run.task.name,
        "reward": run.task.grader.describe(),
        "max_tokens": run.task.sampling.max_tokens,
        "stop": run.task.sampling.stop,
        "samples": arguments.samples,
        "temperature": run.task.sampling.temperature,
        "top_p": run.task.sampling.top_p if sampled else None,
        "seed": arguments.seed if sampled else None,
        "dtype": model.dtype,
        "backend": arguments.backend,
    }
