"""A dispatch from its arguments to its results: the items of a task, graded and compared with the base model, or the
prompts of a file."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from svf_rl import __version__
from svf_rl.adaptation.classifier import Method, classification_ids, default_system_prompt, label_ids
from svf_rl.adaptation.dispatch import Dispatched, Dispatcher, check_classes
from svf_rl.adaptation.dispatch_report import DISPATCH, BaseAnswers, DispatchReport, report, write_dispatched
from svf_rl.adaptation.pool import ExpertPool
from svf_rl.adaptation.prompt_file import PROMPTS, read_prompts
from svf_rl.errors import SVFError
from svf_rl.evaluation.adapters import BASE, Adapter, find_adapters, model_fingerprint
from svf_rl.evaluation.arguments import EvaluationArguments
from svf_rl.evaluation.engine import base_model, load_config, positions
from svf_rl.evaluation.folder import ResultFolder, Settings
from svf_rl.evaluation.items import TaskItems, load_items
from svf_rl.evaluation.records import Record, append_records, mend
from svf_rl.evaluation.run import Run, make_records, room
from svf_rl.generation import Completion, Sampling
from svf_rl.generation.prompts import Conversation, encode_prompts, render_prompt
from svf_rl.models.arguments import ModelArguments
from svf_rl.models.loading import load_tokenizer
from svf_rl.storage.files import write_json

# Tokens of an answer to a prompt of a file, which no task limits.
ANSWER_TOKENS = 512


@dataclass
class DispatchArguments:
    """
    Args:
        evaluation ([`EvaluationArguments`]): base model, task and how to generate; one sample an item, no adapters.
        experts (`Mapping[str, str]`): class to adapter folder or Hub name, such as `{"math": "runs/math"}`.
        classifier (`str`, *optional*): a trained dispatch expert; default: the base model classifies.
        method (`str`, *optional*, defaults to `"generate"`): `"generate"`, or `"loglikelihood"` of the classes.
        system_prompt (`str`, *optional*): asks for the class; default: see
            [`svf_rl.adaptation.classifier.default_system_prompt`].
        max_tokens (`int`, *optional*, defaults to 256): of what the classifier writes.
        prompts (`str`, *optional*): a file of prompts in place of the task; see
            [`svf_rl.adaptation.prompt_file.read_prompts`].
    """

    evaluation: EvaluationArguments
    experts: Mapping[str, str]
    classifier: str | None = None
    method: Method = "generate"
    system_prompt: str | None = None
    max_tokens: int = 256
    prompts: str | None = None

    def __post_init__(self) -> None:
        check_classes(self.experts)
        if len(self.evaluation.tasks) != 1:
            raise SVFError(f"dispatch takes one task, not {len(self.evaluation.tasks)}")
        if self.evaluation.samples != 1:
            raise SVFError("dispatch answers each prompt once: leave samples out")
        if self.prompts is not None and self.evaluation.reward is not None:
            raise SVFError("prompts of a file are not graded: for rows with answers give task columns and data_path")


def named_by_class(given: Sequence[str]) -> dict[str, str]:
    """From `CLASS=PATH` texts to paths by class. Raises `SVFError` for another form and for a class given twice."""
    experts: dict[str, str] = {}
    for text in given:
        label, equals, path = text.partition("=")
        if not (equals and label and path):
            raise SVFError(f"--expert {text}: give the class and its adapter, as in math=runs/math")
        if label in experts:
            raise SVFError(f"class {label!r} has two experts: give it one")
        experts[label] = path
    return experts


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
    config = load_config(evaluation)
    model = base_model(evaluation, config)
    paths = list(
        dict.fromkeys([*arguments.experts.values(), *([arguments.classifier] if arguments.classifier else [])])
    )
    adapters = dict(zip(paths, find_adapters(paths), strict=True))
    classifier = None if arguments.classifier is None else adapters[arguments.classifier]
    tokenizer = load_tokenizer(model)
    work = _Work.of(arguments, tokenizer)
    system_prompt = arguments.system_prompt or default_system_prompt(
        model.location, None if classifier is None else classifier.folder
    )
    template = evaluation.chat_template_kwargs
    classes = classification_ids(tokenizer, work.conversations, system_prompt, template)
    labels = arguments.method == "loglikelihood"
    class_tokens = 1 + max(map(len, label_ids(tokenizer).values())) if labels else arguments.max_tokens
    limit = positions(config)
    length = max(
        room(f"{work.name}, classification of item", classes, class_tokens, limit),
        room(f"{work.name}, item", work.prompt_ids, work.sampling.max_tokens, limit),
    )
    fingerprint = model_fingerprint(model.location, config)
    settings = _settings(arguments, model, fingerprint, work, adapters, classifier, system_prompt)
    folder = ResultFolder(
        Path(evaluation.out or f"runs/dispatch-{Path(evaluation.model).resolve().name}").expanduser(), settings
    )
    answering = {label: adapters[path].label for label, path in arguments.experts.items()}
    folders = {adapter.label: str(adapter.folder) for adapter in adapters.values()}
    assert evaluation.batch_size is not None
    pool = ExpertPool(
        model,
        {name: folders[name] for name in folders if name in answering.values()},
        {name: folders[name] for name in folders if name not in answering.values()},
        backend=evaluation.backend,
        max_length=length,
        seed=evaluation.seed,
        enforce_eager=evaluation.enforce_eager,
        gpu_memory_utilization=evaluation.gpu_memory_utilization,
        batch_size=evaluation.batch_size,
    )
    dispatcher = Dispatcher(
        pool,
        answering,
        system_prompt,
        classifier=None if classifier is None else classifier.label,
        method=arguments.method,
        max_tokens=arguments.max_tokens,
        template_arguments=template,
    )
    with folder.writing():
        base: BaseAnswers | None = None
        if work.items is not None:  # the base model comes first: it is in the engine already
            base = _base_answers(pool, work.items, folder.records(BASE, work.file), evaluation)
            dispatched = dispatcher.answer_items(work.items, seed=evaluation.seed)
        else:
            dispatched = _ungraded(dispatcher, work, tokenizer, template)
        made = report(dispatched, work.items, base, folder.path)
        write_dispatched(folder.records(DISPATCH, work.file), dispatched)
        write_json(
            folder.path / "summary.json",
            {
                "model": evaluation.model,
                "experts": dict(arguments.experts),
                "classifier": arguments.classifier,
                "method": arguments.method,
                "system_prompt": system_prompt,
                "confidence": 0.95,
                "results": [result.to_dict() for result in made.results],
                "classes": [asdict(share) for share in made.shares],
                "first_pass": asdict(made.first),
                "second_pass": asdict(made.second),
                "settings": settings,
                "version": __version__,
            },
        )
    return made


@dataclass(frozen=True)
class _Work:
    """What is answered: the items of a task, or conversations without a verdict (`items` is `None`)."""

    name: str
    file: str
    conversations: Sequence[Conversation]
    prompt_ids: list[list[int]]
    sampling: Sampling
    items: TaskItems | None = None

    @classmethod
    def of(cls, arguments: DispatchArguments, tokenizer: PreTrainedTokenizerBase) -> "_Work":
        evaluation = arguments.evaluation
        if arguments.prompts is None:
            items = load_items(evaluation.tasks[0], evaluation, tokenizer)
            conversations = [row["prompt"] for row in items.rows]
            return cls(f"task {items.name}", items.file, conversations, items.prompt_ids, items.sampling, items)
        conversations = read_prompts(Path(arguments.prompts), evaluation.options, evaluation.limit)
        ids = encode_prompts(tokenizer, conversations, **evaluation.chat_template_kwargs)
        greedy = Sampling(evaluation.max_tokens or ANSWER_TOKENS, temperature=0.0, logprobs=False)
        return cls(arguments.prompts, PROMPTS, conversations, ids, greedy)


def _base_answers(pool: ExpertPool, items: TaskItems, path: Path, arguments: EvaluationArguments) -> BaseAnswers:
    """The base model's answers, for comparison; those of an earlier call are taken from there."""
    started = time.perf_counter()
    run = Run(None, items, [(index, 0) for index in range(len(items.rows))])
    records = run.of_these(mend(path), path)
    reused, pending = len(records), run.pending(records)
    if pending:
        pool.use(None)
    assert arguments.batch_size is not None
    for start in tqdm(range(0, len(pending), arguments.batch_size), desc="base model", unit="batch", disable=None):
        batch = pending[start : start + arguments.batch_size]
        made = make_records(items, batch, pool, pool.tokenizer, arguments.seed)
        append_records(path, made)
        records += made
    ordered = sorted(records, key=lambda record: record.key)
    return BaseAnswers(ordered, time.perf_counter() - started, reused)


def _ungraded(
    dispatcher: Dispatcher, work: _Work, tokenizer: PreTrainedTokenizerBase, template: Mapping[str, Any]
) -> Dispatched[Record]:
    """The prompts of a file as records without a verdict."""
    done: Dispatched[Completion] = dispatcher.answer(work.conversations, work.sampling)
    texts = tokenizer.batch_decode([answer.token_ids for answer in done.answers], skip_special_tokens=True)
    records = [
        Record(
            index=index,
            sample=0,
            prompt=render_prompt(tokenizer, conversation, **template),
            completion=text,
            reference=None,
            extracted=None,
            correct=None,
            score=None,
            reason="a prompt without an answer to compare with",
            infrastructure=False,
            tokens=len(answer.token_ids),
            finished=answer.finished,
        )
        for index, (conversation, text, answer) in enumerate(zip(work.conversations, texts, done.answers, strict=True))
    ]
    return Dispatched(done.classes, done.experts, records, done.first, done.second)


def _settings(
    arguments: DispatchArguments,
    model: ModelArguments,
    fingerprint: str,
    work: _Work,
    adapters: Mapping[str, Adapter],
    classifier: Adapter | None,
    system_prompt: str,
) -> dict[str, Settings]:
    """What decides the answers. Those made with other settings are not mixed with new ones."""
    common = {
        "model": arguments.evaluation.model,
        "model_fingerprint": fingerprint,
        "task": PROMPTS if work.items is None else work.items.name,
        "reward": None if work.items is None else work.items.grader.describe(),
        "max_tokens": work.sampling.max_tokens,
        "stop": work.sampling.stop,
        "temperature": work.sampling.temperature,
        "seed": arguments.evaluation.seed,
        "dtype": model.dtype,
        "backend": arguments.evaluation.backend,
    }
    dispatch = {
        "experts": {label: adapters[path].fingerprint for label, path in arguments.experts.items()},
        "classifier": None if classifier is None else classifier.fingerprint,
        "method": arguments.method,
        "system_prompt": system_prompt,
        "classifier_max_tokens": arguments.max_tokens,
    }
    runs = {f"{DISPATCH}/{work.file}": {**common, **dispatch}}
    return runs if work.items is None else {f"{BASE}/{work.file}": common, **runs}
