"""`reasoning_gym`: the scorer of the data set itself (github.com/open-thought/reasoning-gym), in a worker process.

Some scorers give a share for an answer that is partly right, such as the right one with a word more. With `partial`,
which the task sets, it is kept: a policy finds what pays, and `reward/partial` is the share of completions with one.
"""

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svf_rl.errors import InfrastructureError, SVFError, one_line
from svf_rl.rewards.reading.final_answer import visible_text
from svf_rl.rewards.references import is_number, shorten
from svf_rl.rewards.verifier import Verdict, verifier
from svf_rl.sandbox.workers import WorkerPool, parallel_checks, script_command

SECONDS = 10.0
_PATIENCE = 60.0  # beside what a worker allows two children, on a busy machine
_MOST_CHARACTERS = 1 << 16
_sound: set[str] = set()  # data sets with settings of which an entry could be made
_TAG = re.compile(r"<answer>\s?(.*?)\s?</answer>", re.DOTALL)

_workers = WorkerPool(
    "reasoning_gym", script_command(Path(__file__).with_name("reasoning_gym_worker.py")), parallel_checks()
)


def make_entries(dataset: str, config: Mapping[str, Any], first: int, count: int) -> list[dict[str, str | None]]:
    """
    Entries `first` to `first + count` of a data set, the same on every machine.

    Returns:
        `list[dict]`: `question`, and `answer`, `None` where there is no single right one.

    Raises:
        SVFError: reasoning-gym is not installed, there is no such data set or key, or it refuses the configuration.
    """
    if importlib.util.find_spec("reasoning_gym") is None:
        raise SVFError("reasoning-gym is not installed: pip install 'svf-rl[reasoning]'")
    request = {"do": "make", "dataset": dataset, "config": dict(config), "first": first, "count": count}
    seconds = SECONDS * max(1, count)
    try:
        reply = _workers.call({**request, "timeout": seconds}, 20 * seconds + _PATIENCE)
    except TypeError as error:  # a date, say, as YAML reads it
        raise SVFError(
            f"reasoning-gym's {dataset}: config must be numbers, texts and lists of them: {error}"
        ) from error
    if "raised" in reply:
        raise SVFError(f"reasoning-gym refuses {dataset}: {one_line(reply['raised'])}")
    if "ended" in reply:
        raise SVFError(f"reasoning-gym's {dataset} did not make {count} entries ({reply['ended']}): change its config")
    entries: list[dict[str, str | None]] = reply["entries"]
    return entries


def check_reference(reference: Any, *, timeout: float = SECONDS, **_: Any) -> None:
    """Raises `SVFError` for a reference that names no entry, or an invalid time-out. Each data set is asked once for
    one of its settings."""
    if not is_number(timeout) or not 0 < timeout <= 3600:
        raise SVFError(f"reasoning_gym: timeout must be a number of seconds above 0, not {timeout!r}")
    entry = _entry(reference)
    if (settings := f"{entry['dataset']} {entry['config']!r}") not in _sound:
        make_entries(entry["dataset"], entry["config"], 0, 1)
        _sound.add(settings)


@verifier("reasoning_gym", waits=True, check_reference=check_reference)
def reasoning_gym(completion: str, reference: Any, *, partial: bool = False, timeout: float = SECONDS) -> Verdict:
    """
    Ask the data set's scorer. The answer is what stands in the last `<answer>...</answer>`, or else all of the
    completion that is not thinking.

    An answer at which the scorer raises an error or takes longer than `timeout` is wrong.

    Args:
        reference (`Mapping` or `str`): `dataset`, `config` and `position` of the entry, or these as JSON.
        partial (`bool`, *optional*, defaults to `False`): keep scores between 0 and 1; such an answer is not correct.
        timeout (`float`, *optional*, defaults to `10.0`): seconds of CPU time.

    Raises:
        InfrastructureError: the workers died or could not be started.
    """
    text = visible_text(completion)
    marked = _TAG.findall(text)
    answer = (marked[-1] if marked else text).strip()
    if not answer:
        return Verdict(False, None, "the completion is empty")
    if len(answer) > _MOST_CHARACTERS:
        return Verdict(False, shorten(answer), "the answer is too long")
    request = {"do": "score", **_entry(reference), "completion": answer, "timeout": timeout}
    reply = _workers.call(request, 40 * timeout + _PATIENCE)
    if "score" in reply:
        score = min(max(0.0, reply["score"]), 1.0)  # in this order what is no number is 0
        right = score == 1
        reason = "the data set's scorer says so" if right else f"the data set's scorer gives {score:g}"
        return Verdict(right, answer, reason, score if partial else None)
    if "raised" in reply and reply["entry"]:
        return Verdict(False, answer, f"the data set's scorer raised {reply['raised']}", raised=True)
    if reply.get("ended") == "died":
        raise InfrastructureError("two processes that score answers were killed, or did not get to run")
    if not reply["entry"]:
        return Verdict(None, answer, f"the entry could not be made ({reply.get('ended') or reply['raised']})")
    return Verdict(False, answer, f"the data set's scorer was {reply['ended']}", raised=True)


def _entry(reference: Any) -> dict[str, Any]:
    given = reference
    if isinstance(reference, str):
        try:
            given = json.loads(reference)
        except ValueError:
            given = None
    if not isinstance(given, Mapping) or not {"dataset", "config", "position"} <= given.keys():
        raise SVFError(f"reasoning_gym: an answer must have dataset, config and position, not {shorten(reference)}")
    entry = {name: given[name] for name in ("dataset", "config", "position")}
    text, config, position = entry.values()
    whole = isinstance(position, int) and not isinstance(position, bool) and position >= 0
    if not isinstance(text, str) or not isinstance(config, Mapping) or not whole:
        raise SVFError(
            "reasoning_gym: dataset must be a name, config a mapping and position a number from 0 on, not "
            f"{shorten(entry)}"
        )
    return entry
