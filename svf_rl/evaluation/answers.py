"""Items answered and graded, a batch at a time; a second call resumes from the records that were written."""

import copy
import json
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from svf_rl.episodes.environments import Environments
from svf_rl.episodes.episodes import Episodes
from svf_rl.episodes.random_state import own_random_numbers
from svf_rl.episodes.rollout import Rollout, before_stop
from svf_rl.errors import SVFError
from svf_rl.evaluation.items import Key, TaskItems
from svf_rl.evaluation.records import Answers, Record, append_records, mend
from svf_rl.evaluation.turns import play_items
from svf_rl.experts.pool import ExpertPool, Mix
from svf_rl.generation import Completion, cut_at_stop, sample_seed
from svf_rl.rewards import Verdict, completion_text
from svf_rl.storage.json_files import normalize_json


def answer_items(
    pool: ExpertPool | None,
    which: str | Mix | None,
    task: TaskItems,
    keys: Sequence[Key],
    path: Path | None = None,
    *,
    label: str,
    seed: int = 0,
    batch_size: int | None = None,
) -> Answers:
    """
    Let a model answer items of a task.

    Args:
        pool ([`ExpertPool`], *optional*): generates; not needed where all records are there.
        which (`str`, [`Mix`] or `None`): an adapter of the pool, a combination of its experts, or the base model.
        task ([`TaskItems`]): prompts, sampling and verdicts are its own.
        keys (`Sequence[Key]`): the completions that are wanted.
        path (`Path`, *optional*): the file of the records. Those that are there are not made again, and new ones are
            added batch by batch; it must be of the same model and settings.
        label (`str`): of the model, for the progress bar.
        seed (`int`, *optional*, defaults to 0): of sampled completions.
        batch_size (`int`, *optional*): completions written together; default: all.

    Raises:
        SVFError: records of other items, or too many checks that failed by themselves.
    """
    started = time.perf_counter()
    done, pending = ([], list(keys)) if path is None else split_pending(task, keys, mend(path), path)
    records = list(done)
    if pool is not None and pending:
        pool.use(which)
    places = {key: place for place, key in enumerate(keys)}  # so that a resumed run cuts the same batches
    with tqdm(
        total=len(keys), initial=len(done), desc=f"{task.name}, {label}", unit="completion", dynamic_ncols=True
    ) as bar:
        for _, group in groupby(pending, key=lambda key: places[key] // (batch_size or len(keys))):
            assert pool is not None
            made = make_records(task, list(group), pool, seed)
            if path is not None:
                append_records(path, made)
            records += made
            scorable = [record.correct for record in records if record.correct is not None]
            bar.set_postfix_str(f"correct {sum(scorable) / max(1, len(scorable)):.3f}", refresh=False)
            bar.update(len(made))
    return Answers(sorted(records, key=lambda record: record.key), time.perf_counter() - started, len(done))


def split_pending(
    task: TaskItems, keys: Sequence[Key], records: Sequence[Record], path: Path
) -> tuple[list[Record], list[Key]]:
    """Those of the `records` of a file that are wanted, and the keys without one. Raises `SVFError` for records of
    other items."""
    wanted = set(keys)
    done = {record.key: record for record in records if record.key in wanted and not record.infrastructure}
    for record in done.values():
        if record.prompt != task.prompts[record.index]:
            raise SVFError(f"{path}: item {record.index} has another prompt now; give another --out")
        # as text: a NaN is not equal to itself
        reference = normalize_json(task.grader.reference(task.rows[record.index]))
        if json.dumps(record.reference, sort_keys=True) != json.dumps(reference, sort_keys=True):
            raise SVFError(f"{path}: item {record.index} has another answer now; give another --out")
    return list(done.values()), [key for key in keys if key not in done]


def make_records(
    task: TaskItems, keys: Sequence[Key], pool: ExpertPool, seed: int, which: Sequence[str | None] | None = None
) -> list[Record]:
    """Generate and grade one batch; each completion by the adapter that `which` names for it, by default all by the one
    that the pool uses."""
    rows = [copy.deepcopy(task.rows[index]) for index, _ in keys]  # an environment may play with its row
    if task.toolbox is None:
        seeds = [sample_seed(seed, f"evaluation/{task.name}", index, sample) for index, sample in keys]
        prompt_ids = [task.prompt_ids[index] for index, _ in keys]
        completions = pool.generate(prompt_ids, task.sampling, seeds, which)
        rollout = Rollout.of([task.prompts[index] for index, _ in keys], prompt_ids, completions, pool.tokenizer)
        answers = [before_stop(answer, task.sampling.stop) for answer in rollout.completions]
        verdicts = task.grader.grade(rows, answers, rollout.completion_ids)
    else:
        episodes = Episodes(task.toolbox, task.sampling.max_tokens, pool.max_length)
        # what tools and environments draw is the same for each model
        with own_random_numbers(sample_seed(seed, f"evaluation/{task.name}/draws", *keys[0])):
            rollout = play_items(episodes, task, rows, keys, pool, seed, which)
            answers = [before_stop(answer, task.sampling.stop) for answer in rollout.completions]
            verdicts = task.grader.grade(rows, answers, rollout.completion_ids, episodes.environments)
        verdicts = [_judged(episodes.environments, place, verdict) for place, verdict in enumerate(verdicts)]
    return [
        Record(
            index=index,
            sample=sample,
            prompt=task.prompts[index],
            completion=completion_text(answer),
            reference=task.grader.reference(task.rows[index]),
            extracted=verdict.extracted,
            correct=verdict.correct,
            score=verdict.value,
            reason=verdict.reason,
            infrastructure=verdict.infrastructure,
            tokens=length,
            finished=finished,
            messages=None if isinstance(answer, str) else [*prompt, *answer],
        )
        for (index, sample), prompt, answer, verdict, length, finished in zip(
            keys, rollout.prompts, answers, verdicts, rollout.lengths, rollout.finished, strict=True
        )
    ]


def _judged(environments: Environments, place: int, verdict: Verdict) -> Verdict:
    """`verdict`, unless the environment failed: half an episode is not judged. The next call tries it again, but for
    one whose words leave no room for an answer."""
    how = environments.failed[place]
    return Verdict(None, None, how, infrastructure=not environments.full[place]) if how else verdict


def decode_completions(
    tokenizer: PreTrainedTokenizerBase, completions: Sequence[Completion], stop: Sequence[str] = ()
) -> list[str]:
    """The text of each completion up to the first of the strings `stop`."""
    texts = tokenizer.batch_decode([completion.token_ids for completion in completions], skip_special_tokens=True)
    return [cut_at_stop(text, stop) for text in texts]
