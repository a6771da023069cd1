"""The probes of a comparison's file: further evaluations of all that was trained."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.evaluation.text_windows import find_text
from svf_rl.reproduce.methods import LORA, SVF, slug
from svf_rl.reproduce.sections import read_section
from svf_rl.tasks import TaskOptions

WINDOW = 256
"""Tokens of a text that are read at once."""


@dataclass(frozen=True)
class Probe:
    """
    A further evaluation of all that was trained: other rows than an expert's own, or sampled answers.

    Args:
        options (`dict`, *optional*): the task's options that are changed, such as `{shots: 0}`.
        experts (`dict[str, dict]`, *optional*): further ones by expert; default: all experts.
        others (`bool`, *optional*): on the tasks of the other experts: what training took away.
        methods (`list[str]`, *optional*): those of the table; default: all.
        temperature (`float`, *optional*), samples (`int`, *optional*), limit (`int`, *optional*): as `svf-rl eval` has
            them, greedy by default. With several samples pass@k is reported for 1, 2, 4, ….
        text (`str`, *optional*): in place of a task the log-likelihood of this text: a file, from the folder of the
            comparison's file, or `package:path/inside.txt` of an installed Python package.
        window (`int`, *optional*, defaults to 256): tokens of the text that are read at once; `limit` is how many such
            windows are scored, by default all.
    """

    options: dict[str, Any] = field(default_factory=dict)
    experts: dict[str, dict[str, Any]] = field(default_factory=dict)
    others: bool = False
    methods: list[str] = field(default_factory=list)
    temperature: float = 0.0
    samples: int = 1
    limit: int | None = None
    text: str | None = None
    window: int | None = None


def pass_ks(samples: int) -> list[int]:
    """The k of pass@k that are reported of so many samples: 1, 2, 4, …."""
    return [2**power for power in range(samples.bit_length())]


def read_probe(name: str, spec: Any, experts: Collection[str], variants: Collection[Any], folder: Path) -> Probe:
    """
    The probe `name` of a comparison with these experts and variants, whose file is in `folder`: `text` is then the path
    that was found.

    Raises:
        SVFError: an unknown key, a value that does not fit, keys that do not go together, or no such text.
    """
    if not isinstance(spec, dict):
        raise SVFError(f"probe {name!r} must be a mapping, as in {{options: {{shots: 0}}}}")
    probe: Probe = read_section(f"probe {name!r}", spec, Probe)
    for expert in probe.experts:
        if expert not in experts:
            raise SVFError(f"probe {name!r}: there is no expert {expert!r}; the experts are {', '.join(experts)}")
    for changes in (probe.options, *probe.experts.values()):
        read_section(f"probe {name!r}: options", changes, TaskOptions)
        for key in ("skill", "dataset"):
            if key in changes:
                raise SVFError(f"probe {name!r}: {key} is part of the expert's task, which is asked for: leave it out")
    known = [SVF, LORA, *(slug(str(variant)) for variant in variants)]
    for method in probe.methods:
        if slug(method) not in known:
            raise SVFError(f"probe {name!r}: there is no method {method!r}; there are: {', '.join(known)}")
    if probe.others and len(experts) < 2:
        raise SVFError(f"probe {name!r}: others needs a second expert")
    return _text_probe(name, spec, probe, folder)


def _text_probe(name: str, spec: Mapping[str, Any], probe: Probe, folder: Path) -> Probe:
    """The probe with the path of its text, where it has one."""
    if probe.text is None:
        if probe.window is not None:
            raise SVFError(f"probe {name!r}: window is for a text: name one, or remove it")
        return probe
    for key in ("options", "experts", "others", "temperature", "samples"):
        if key in spec:
            raise SVFError(f"probe {name!r}: {key} does not go with text, which is read and not answered: remove it")
    if probe.limit is not None and probe.limit < 1:
        raise SVFError(f"probe {name!r}: limit must be at least 1, not {probe.limit}")
    try:
        return replace(
            probe, text=str(find_text(probe.text, folder)), window=WINDOW if probe.window is None else probe.window
        )
    except SVFError as error:
        raise SVFError(f"probe {name!r}: {error}") from error
