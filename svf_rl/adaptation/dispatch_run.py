"""A dispatch from its arguments to its results: the items of a task, graded and compared with the base model, or the
prompts of a file."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from svf_rl import __version__
from svf_rl.adaptation.arguments import DispatchArguments, check_classes
from svf_rl.adaptation.classifier import ClassifierPrompt, classification_ids, find_classifier_prompt
from svf_rl.adaptation.dispatch import Dispatched, Pass, dispatch
from svf_rl.adaptation.prompt_file import read_prompts, ungraded_items
from svf_rl.adaptation.strategies import find_strategy
from svf_rl.evaluation.adapters import BASE, Adapter, find_adapters
from svf_rl.evaluation.answers import answer_items
from svf_rl.evaluation.base_model import BaseModel, find_base_model
from svf_rl.evaluation.folder import Settings, choose_folder
from svf_rl.evaluation.items import TaskItems, load_items, room
from svf_rl.evaluation.records import Answers
from svf_rl.evaluation.summary import Result, summarize
from svf_rl.evaluation.table import table
from svf_rl.experts.pool import ExpertPool
from svf_rl.generation import Sampling
from svf_rl.metrics.statistics import Estimate, as_json, estimate_share
from svf_rl.storage.files import write_file, write_json
from svf_rl.text_table import aligned

DISPATCH = "dispatch"
# Tokens of an answer to a prompt of a file, which no task limits.
ANSWER_TOKENS = 512


@dataclass(frozen=True)
class Share:
    """The prompts of one class. `accuracy` is `None` where nothing was graded."""

    label: str | None
    expert: str
    prompts: int
    accuracy: Estimate | None


@dataclass(frozen=True)
class DispatchReport:
    """What a dispatch says in numbers and lines."""

    results: list[Result]  # the base model and dispatch on the items of a task; empty for prompts of a file
    shares: list[Share]  # class by class, the most frequent first
    first: Pass
    second: Pass
    folder: Path  # where the answers are

    def __str__(self) -> str:
        rows = []
        for share in self.shares:
            row = {"class": share.label or "unreadable", "expert": share.expert, "prompts": str(share.prompts)}
            if (found := share.accuracy) is not None:
                row |= {"accuracy": f"{found.value:.3f}", "95 %": f"{found.low:.3f}-{found.high:.3f}"}
            rows.append(row)
        passes = [
            {"pass": name, "seconds": f"{one.seconds:.2f}", "weight syncs": str(one.syncs)}
            for name, one in (("first (classes)", self.first), ("second (answers)", self.second))
        ]
        parts = [table(self.results)] if self.results else []
        parts += [aligned(rows, left=("class", "expert")), aligned(passes, left=("pass",))]
        return "\n\n".join([*parts, f"answers: {self.folder}"])


def run_dispatch(arguments: DispatchArguments) -> DispatchReport:
    """
    Classify and answer the items of a task, or the prompts of a file, and write what came out to the folder `out`.

    The folder is laid out like that of an evaluation. Each line of `dispatch/*.jsonl` also holds `class`, `expert` and
    `classification` (what the classifier wrote, or log p of each class). Answers of the base model that an earlier call
    has graded are taken from there.

    Raises:
        SVFError: bad input. All of it is checked before anything is written.
    """
    evaluation = arguments.evaluation
    base = find_base_model(evaluation)
    paths = list(dict.fromkeys([*arguments.experts.values(), *filter(None, [arguments.classifier])]))
    adapters = dict(zip(paths, find_adapters(paths), strict=True))
    classifier = None if arguments.classifier is None else adapters[arguments.classifier]
    asked = find_classifier_prompt(base.arguments.location, None if classifier is None else classifier.folder)
    if arguments.classifier_prompt:
        asked = replace(asked, system_prompt=arguments.classifier_prompt)
    check_classes(arguments.experts, asked.labels)
    items = _items(arguments, base)
    template = evaluation.chat_template_kwargs
    classes = classification_ids(base.tokenizer, [row["prompt"] for row in items.rows], asked, **template)
    class_tokens = find_strategy(arguments.method).count_tokens(
        base.tokenizer, arguments.classifier_tokens, asked.labels
    )
    title = arguments.prompts or f"task {items.name}"
    length = max(
        room(f"{title}, classification of item", classes, class_tokens, base.positions),
        room(f"{title}, item", items.prompt_ids, items.sampling.max_tokens, base.positions),
    )
    settings = _settings(arguments, base, items, adapters, classifier, asked)
    folder = choose_folder(evaluation.out, f"runs/dispatch-{Path(evaluation.model).resolve().name}", settings)
    answering = {label: adapters[path].label for label, path in arguments.experts.items()}
    folders = {adapter.label: str(adapter.folder) for adapter in adapters.values()}
    pool = ExpertPool(
        base.arguments,
        {name: folders[name] for name in folders if name in answering.values()},
        {name: folders[name] for name in folders if name not in answering.values()},
        engine=evaluation,
        max_length=length,
    )
    with folder.writing():
        plain: Answers | None = None
        if arguments.prompts is None:  # the base model comes first: it is in the engine already
            plain = answer_items(
                pool, None, items, [(index, 0) for index in range(len(items.rows))],
                folder.records(BASE, items.file), label=BASE, seed=evaluation.seed, batch_size=evaluation.batch_size,
            )  # fmt: skip
        dispatched = dispatch(
            pool,
            items,
            answering,
            asked,
            classifier=None if classifier is None else classifier.label,
            method=arguments.method,
            max_tokens=arguments.classifier_tokens,
            template_arguments=template,
            seed=evaluation.seed,
        )
        made = _report(dispatched, items, plain, folder.path)
        _write_answers(folder.records(DISPATCH, items.file), dispatched)
        write_json(
            folder.path / "summary.json",
            {
                "model": evaluation.model,
                "experts": dict(arguments.experts),
                "classifier": arguments.classifier,
                "method": arguments.method,
                "system_prompt": asked.system_prompt,
                "confidence": 0.95,
                "results": [result.to_dict() for result in made.results],
                "classes": [{**asdict(share), "accuracy": as_json(share.accuracy)} for share in made.shares],
                "first_pass": asdict(made.first),
                "second_pass": asdict(made.second),
                "settings": settings,
                "version": __version__,
            },
        )
    return made


def _items(arguments: DispatchArguments, base: BaseModel) -> TaskItems:
    """The items of the task, or the prompts of the file."""
    evaluation = arguments.evaluation
    if arguments.prompts is None:
        return load_items(evaluation.tasks[0], evaluation, base.tokenizer)
    conversations = read_prompts(Path(arguments.prompts), evaluation.options, evaluation.limit)
    greedy = Sampling(evaluation.max_tokens or ANSWER_TOKENS, temperature=0.0, logprobs=False)
    return ungraded_items(base.tokenizer, conversations, greedy, **evaluation.chat_template_kwargs)


def _report(dispatched: Dispatched, items: TaskItems, base: Answers | None, folder: Path) -> DispatchReport:
    """The figures of a dispatch; `base` is `None` without verdicts."""
    results: list[Result] = []
    if base is not None:
        answers = Answers(dispatched.answers, dispatched.first.seconds + dispatched.second.seconds, reused=0)
        results = [
            summarize(BASE, items.name, items.metric, base),
            summarize(DISPATCH, items.name, items.metric, answers, base=base),
        ]
    verdicts: dict[tuple[str | None, str], list[bool | None]] = {}
    for classified, expert, record in zip(dispatched.classes, dispatched.experts, dispatched.answers, strict=True):
        verdicts.setdefault((classified.label, expert or BASE), []).append(record.correct)
    shares = []
    for (label, expert), found in verdicts.items():
        scorable = len(found) - found.count(None)
        accuracy = estimate_share(found.count(True) / scorable, scorable) if scorable else None
        shares.append(Share(label, expert, len(found), accuracy))
    shares.sort(key=lambda share: -share.prompts)
    return DispatchReport(results, shares, dispatched.first, dispatched.second, folder)


def _write_answers(path: Path, dispatched: Dispatched) -> None:
    """A line for each answer, with its class, the expert that gave it, and what the classifier said; the whole file or
    nothing."""
    lines = []
    for record, classified, expert in zip(dispatched.answers, dispatched.classes, dispatched.experts, strict=True):
        said = classified.text if classified.logprobs is None else dict(classified.logprobs)
        extra = {"class": classified.label, "expert": expert or BASE, "classification": said}
        lines.append(json.dumps({**vars(record), **extra}, ensure_ascii=False, default=str) + "\n")
    write_file(path, "".join(lines))


def _settings(
    arguments: DispatchArguments,
    base: BaseModel,
    items: TaskItems,
    adapters: Mapping[str, Adapter],
    classifier: Adapter | None,
    asked: ClassifierPrompt,
) -> dict[str, Settings]:
    """What decides the answers. Those made with other settings are not mixed with new ones."""
    common = {
        "model": arguments.evaluation.model,
        "model_fingerprint": base.fingerprint,
        "task": items.name,
        "reward": items.grader.describe(),
        "max_tokens": items.sampling.max_tokens,
        "stop": items.sampling.stop,
        "temperature": items.sampling.temperature,
        "seed": arguments.evaluation.seed,
        "dtype": base.arguments.dtype,
        "backend": arguments.evaluation.backend,
    }
    if arguments.prompts is not None:
        common["prompts"] = hashlib.sha256(json.dumps(items.prompts).encode()).hexdigest()[:16]
    dispatch = {
        "experts": {label: adapters[path].fingerprint for label, path in arguments.experts.items()},
        "classifier": None if classifier is None else classifier.fingerprint,
        "method": arguments.method,
        "system_prompt": asked.system_prompt,
        "examples": list(asked.examples),
        "classifier_max_tokens": arguments.classifier_tokens,
    }
    runs = {f"{DISPATCH}/{items.file}": {**common, **dispatch}}
    return runs if arguments.prompts is not None else {f"{BASE}/{items.file}": common, **runs}
