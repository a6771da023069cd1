"""One seed's adaptation to the unseen tasks: every method on the same items, with one model and one generator."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from svf_rl.adaptation.arguments import DispatchArguments, FewShotArguments, FitnessWeights
from svf_rl.adaptation.classifier import ClassifierPrompt, classification_ids, find_classifier_prompt
from svf_rl.adaptation.dispatch import dispatch
from svf_rl.adaptation.few_shot import adapt, unseen
from svf_rl.adaptation.strategies import find_strategy
from svf_rl.errors import SVFError
from svf_rl.evaluation.adapters import BASE, find_adapters
from svf_rl.evaluation.answers import answer_items, split_pending
from svf_rl.evaluation.base_model import find_base_model
from svf_rl.evaluation.items import TaskItems, check_lengths, load_items, room
from svf_rl.evaluation.records import append_records, read_records
from svf_rl.experts.arguments import SHARE_BESIDE_EXPERTS
from svf_rl.experts.pool import ExpertPool, Mix
from svf_rl.reproduce.cells import evaluation_arguments, read_result
from svf_rl.reproduce.methods import DISPATCH, MEAN, PROMPT, few_shot_label, slug
from svf_rl.storage.files import write_json
from svf_rl.storage.json_files import normalize_json
from svf_rl.storage.same_settings import check_same_settings
from svf_rl.svf.combine import even_weights
from svf_rl.tasks import find_task


@dataclass(frozen=True)
class UnseenItems:
    """An unseen task made ready: its test rows, those that shots are drawn from (`labelled`), the test `rows` that are
    reported, for every method and seed (no labelled prompt among them), and where the records of one seed go."""

    label: str
    items: TaskItems
    labelled: TaskItems
    rows: list[int]
    folder: Path


def adapt_to_unseen(spec: Mapping[str, Any]) -> None:
    """
    Make what a cell of kind `adaptation` asks for, less what is there already, and write its `summary.json`.

    Raises:
        SVFError: experts that do not go together, too few labelled rows, or records of other settings.
    """
    started = time.perf_counter()
    cell = _Seed(spec)
    for task in cell.tasks:
        cell.run(task)
    write_json(
        Path(spec["out"]) / "summary.json",
        {
            "seed": spec["seed"],
            "tasks": {task.label: cell.summary(task) for task in cell.tasks},
            "seconds": round(time.perf_counter() - started, 1),
        },
    )


class _Seed:
    """The experts of one seed, and the tasks."""

    def __init__(self, spec: Mapping[str, Any]):
        self._spec = spec
        self._arguments = evaluation_arguments({**spec, **next(iter(spec["unseen"].values()))})
        self._base = find_base_model(self._arguments)
        self.tasks = [self._prepare(label, task) for label, task in spec["unseen"].items()]
        self._experts: dict[str, str] = dict(spec["experts"])
        self._others: dict[str, str] = {DISPATCH: spec["dispatch"]} if spec["dispatch"] else {}
        # by label who classifies the prompts: the base model, or a dispatch expert. Both are asked the same
        self._classifiers: dict[str, str | None] = {}
        if spec["compare"] and spec["classes"]:
            self._classifiers = {PROMPT: None, **{name: name for name in self._others}}
        everything = [items for task in self.tasks for items in (task.items, task.labelled)]
        self._length = max([check_lengths(everything, self._base.positions), *self._classification_lengths()])
        adapters = {**self._experts, **self._others}
        prints = [adapter.fingerprint for adapter in find_adapters(list(adapters.values()))]
        self._prints = dict(zip(adapters, prints, strict=True))

    @cached_property
    def _asked(self) -> ClassifierPrompt:
        """What classifiers are asked: as the dispatch expert was in training, where there is one."""
        folder = self._spec["dispatch"]
        return find_classifier_prompt(self._base.arguments.location, Path(folder) if folder else None)

    def _classification_lengths(self) -> list[int]:
        """The longest prompt of each first pass with its class, in tokens."""
        tokenizer, template = self._base.tokenizer, self._spec["chat_template_kwargs"]
        lengths = []
        for task in self.tasks if self._classifiers else ():
            strategy = find_strategy(DispatchArguments.method)
            tokens = strategy.count_tokens(tokenizer, DispatchArguments.classifier_tokens, self._asked.labels)
            prompts = [task.items.rows[row]["prompt"] for row in task.rows]
            asked = classification_ids(tokenizer, prompts, self._asked, **template)
            what = f"unseen task {task.label}, classification of item"
            lengths.append(room(what, asked, tokens, self._base.positions))
        return lengths

    @cached_property
    def _pool(self) -> ExpertPool:
        """Built when the first method needs it."""
        share = min(SHARE_BESIDE_EXPERTS, self._arguments.gpu_memory_utilization or 1.0)
        engine = replace(self._arguments, seed=self._spec["seed"], gpu_memory_utilization=share)
        return ExpertPool(self._base.arguments, self._experts, self._others, engine=engine, max_length=self._length)

    def run(self, task: UnseenItems) -> None:
        """All methods of the cell on one task."""
        if self._spec["base"]:
            self._plain(task, BASE, None)
        if self._spec["compare"]:
            for name in self._experts:
                self._plain(task, name, name)
            self._plain(task, MEAN, Mix(even_weights(len(self._experts), 1)))
            for label in self._classifiers:
                self._dispatch(task, label)
        for shots in self._spec["shots"]:
            self._few_shot(task, shots)

    def summary(self, task: UnseenItems) -> dict[str, Any]:
        """What the tables need beside the records."""
        expert_of = self._spec["tasks"]
        own = {row: expert_of.get(str(task.items.rows[row].get("task"))) for row in task.rows}
        return {
            "task": task.items.name,
            "metric": task.items.metric,
            "rows": task.rows,
            "own_expert": own if all(own.values()) else None,
            "methods": {path.stem: read_result(path).get("result") for path in task.folder.glob("*.json")},
        }

    def _make(
        self,
        task: UnseenItems,
        label: str,
        adapters: Sequence[str],
        more: Mapping[str, Any],
        make: Callable[[], Mapping[str, Any]],
    ) -> None:
        """The result of one method on one task, in a file with what it was made with, unless it is there. `adapters`
        are those that the method uses: another one in its place makes another result."""
        path, done = task.folder / f"{label}.json", False
        settings = {
            "model": self._base.fingerprint,
            "experts": {name: self._prints[name] for name in adapters},
            "reward": task.items.grader.describe(),
            "rows": len(task.rows),
            **more,
        }
        earlier = read_result(path)
        if earlier:
            made = f"{path.parent} holds {path.stem}, which was made"
            remedy = "remove that folder, or give another --out"
            check_same_settings(earlier.get("settings", {}), settings, made, remedy)
            try:  # the records say what was asked
                keys, records = [(row, 0) for row in task.rows], path.with_suffix(".jsonl")
                _, pending = split_pending(task.items, keys, read_records(records), records)
            except SVFError as error:
                raise SVFError(f"{error}, or remove {path.parent}") from error
            done = earlier.get("result") is not None and not pending
        if not done:
            write_json(path, normalize_json({"settings": settings}))  # of the records beside this file
            write_json(path, normalize_json({"settings": settings, "result": make()}))

    def _plain(self, task: UnseenItems, label: str, which: str | Mix | None) -> None:
        used = list(self._experts) if isinstance(which, Mix) else [which] if which else []
        self._make(task, label, used, {}, lambda: self._answer(task, label, which))

    def _answer(self, task: UnseenItems, label: str, which: str | Mix | None) -> dict[str, Any]:
        """Let a model answer the items that are reported. Returns the seconds of the answers made now, weight sync and
        grading included, and how many an interrupted call had made before."""
        answers = answer_items(
            self._pool, which, task.items, [(row, 0) for row in task.rows], task.folder / f"{label}.jsonl",
            label=label, batch_size=self._arguments.batch_size,
        )  # fmt: skip
        return {"seconds": round(answers.seconds, 2), "reused": answers.reused}

    def _dispatch(self, task: UnseenItems, label: str) -> None:
        classes, classifier, asked = self._spec["classes"], self._classifiers[label], self._asked

        def make() -> dict[str, Any]:
            dispatched = dispatch(
                self._pool, task.items, classes, asked, classifier=classifier,
                template_arguments=self._spec["chat_template_kwargs"], rows=task.rows,
            )  # fmt: skip
            records = task.folder / f"{label}.jsonl"
            records.unlink(missing_ok=True)  # of a call that ended between this and the next line
            append_records(records, dispatched.answers)
            return {
                "first": asdict(dispatched.first),
                "second": asdict(dispatched.second),
                "unreadable": sum(classified.label is None for classified in dispatched.classes),
                "experts": dict(zip(task.rows, dispatched.experts, strict=True)),
            }

        used = [*dict.fromkeys(classes.values()), *([classifier] if classifier else [])]
        more = {"classes": classes, "system_prompt": asked.system_prompt, "examples": list(asked.examples)}
        self._make(task, label, used, more, make)

    def _few_shot(self, task: UnseenItems, shots: int) -> None:
        given = self._spec["few_shot"]
        given = {**given, "weights": FitnessWeights(**given["weights"]), "shots": shots, "seed": self._spec["seed"]}
        search, label = FewShotArguments(**given), few_shot_label(shots)

        def make() -> dict[str, Any]:
            found = adapt(self._pool, task.labelled, search, task.folder / label)
            adapter = task.folder / label / "adapter"
            shutil.rmtree(adapter, ignore_errors=True)  # of a call that ended behind the next line
            self._pool.save(found.mix, adapter)
            return {**self._answer(task, label, found.mix), "search": found.to_dict()}

        self._make(task, label, list(self._experts), {"few_shot": asdict(search)}, make)

    def _prepare(self, label: str, task: Mapping[str, Any]) -> UnseenItems:
        name = task["task"]
        arguments = evaluation_arguments({**self._spec, **task})
        whole = replace(arguments, limit=None)
        items = load_items(name, whole, self._base.tokenizer)
        if find_task(name).load(whole.options)["validation"] is not None:
            labelled = load_items(name, whole, self._base.tokenizer, splits=("validation",))
        else:
            labelled = items.only(reserved(items, self._spec["reserve"]))
        rows = unseen(items, labelled, range(len(labelled.rows)))[: arguments.limit]
        if not rows:
            raise SVFError(f"unseen task {label}: no test rows are left beside the labelled ones")
        return UnseenItems(label, items, labelled, rows, Path(self._spec["out"]) / slug(label))


def reserved(items: TaskItems, count: int) -> list[int]:
    """Rows that shots are drawn from where there are no others, the same for all seeds: they are not reported."""
    return sorted(int(row) for row in np.random.default_rng(0).permutation(len(items.rows))[:count])
