"""A dispatch from its arguments to its results: the items of a task, graded and compared with the base model, or the
prompts of a file."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from svf_rl import __version__
from svf_rl.adaptation.arguments import DispatchArguments
from svf_rl.adaptation.classifier import classification_ids, default_system_prompt
from svf_rl.adaptation.dispatch import Dispatched, Dispatcher
from svf_rl.adaptation.dispatch_report import DISPATCH, DispatchReport, report, write_dispatched
from svf_rl.adaptation.prompt_file import PROMPTS, read_prompts
from svf_rl.adaptation.strategies import find_strategy
from svf_rl.evaluation.adapters import BASE, Adapter, find_adapters
from svf_rl.evaluation.answers import answer_items, decode_completions
from svf_rl.evaluation.base_model import BaseModel, find_base_model
from svf_rl.evaluation.folder import ResultFolder, Settings
from svf_rl.evaluation.items import TaskItems, load_items, room
from svf_rl.evaluation.records import Answers, Record
from svf_rl.experts.pool import ExpertPool
from svf_rl.generation import Completion, Sampling
from svf_rl.generation.prompts import Conversation, encode_prompts, render_prompt
from svf_rl.metrics.statistics import as_json
from svf_rl.storage.files import write_json

# Tokens of an answer to a prompt of a file, which no task limits.
ANSWER_TOKENS = 512


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
    work = _Work.of(arguments, base.tokenizer)
    system_prompt = arguments.classifier_prompt or default_system_prompt(
        base.arguments.location, None if classifier is None else classifier.folder
    )
    template = evaluation.chat_template_kwargs
    classes = classification_ids(base.tokenizer, work.conversations, system_prompt, template)
    class_tokens = find_strategy(arguments.method).count_tokens(base.tokenizer, arguments.classifier_tokens)
    length = max(
        room(f"{work.name}, classification of item", classes, class_tokens, base.positions),
        room(f"{work.name}, item", work.prompt_ids, work.sampling.max_tokens, base.positions),
    )
    settings = _settings(arguments, base, work, adapters, classifier, system_prompt)
    folder = ResultFolder(
        Path(evaluation.out or f"runs/dispatch-{Path(evaluation.model).resolve().name}").expanduser(), settings
    )
    answering = {label: adapters[path].label for label, path in arguments.experts.items()}
    folders = {adapter.label: str(adapter.folder) for adapter in adapters.values()}
    pool = ExpertPool(
        base.arguments,
        {name: folders[name] for name in folders if name in answering.values()},
        {name: folders[name] for name in folders if name not in answering.values()},
        engine=evaluation,
        max_length=length,
    )
    dispatcher = Dispatcher(
        pool,
        answering,
        system_prompt,
        classifier=None if classifier is None else classifier.label,
        method=arguments.method,
        max_tokens=arguments.classifier_tokens,
        template_arguments=template,
    )
    with folder.writing():
        plain: Answers | None = None
        if work.items is not None:  # the base model comes first: it is in the engine already
            plain = answer_items(
                pool, None, work.items, [(index, 0) for index in range(len(work.items.rows))],
                folder.records(BASE, work.file), label=BASE, seed=evaluation.seed, batch_size=evaluation.batch_size,
            )  # fmt: skip
            dispatched = dispatcher.answer_items(work.items, seed=evaluation.seed)
        else:
            dispatched = _ungraded(dispatcher, work, base.tokenizer, template)
        made = report(dispatched, work.items, plain, folder.path)
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
                "classes": [{**asdict(share), "accuracy": as_json(share.accuracy)} for share in made.shares],
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


def _ungraded(
    dispatcher: Dispatcher, work: _Work, tokenizer: PreTrainedTokenizerBase, template: Mapping[str, Any]
) -> Dispatched[Record]:
    """The prompts of a file as records without a verdict."""
    done: Dispatched[Completion] = dispatcher.answer(work.conversations, work.sampling)
    texts = decode_completions(tokenizer, done.answers)
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
    base: BaseModel,
    work: _Work,
    adapters: Mapping[str, Adapter],
    classifier: Adapter | None,
    system_prompt: str,
) -> dict[str, Settings]:
    """What decides the answers. Those made with other settings are not mixed with new ones."""
    common = {
        "model": arguments.evaluation.model,
        "model_fingerprint": base.fingerprint,
        "task": PROMPTS if work.items is None else work.items.name,
        "reward": None if work.items is None else work.items.grader.describe(),
        "max_tokens": work.sampling.max_tokens,
        "stop": work.sampling.stop,
        "temperature": work.sampling.temperature,
        "seed": arguments.evaluation.seed,
        "dtype": base.arguments.dtype,
        "backend": arguments.evaluation.backend,
    }
    dispatch = {
        "experts": {label: adapters[path].fingerprint for label, path in arguments.experts.items()},
        "classifier": None if classifier is None else classifier.fingerprint,
        "method": arguments.method,
        "system_prompt": system_prompt,
        "classifier_max_tokens": arguments.classifier_tokens,
    }
    runs = {f"{DISPATCH}/{work.file}": {**common, **dispatch}}
    return runs if work.items is None else {f"{BASE}/{work.file}": common, **runs}
