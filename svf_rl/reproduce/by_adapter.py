"""What is measured of each adapter of an expert: what training moved, and what it left of a text. Each has a file, so
that an interrupted cell goes on; `summary.json` has them together."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from svf_rl.evaluation.adapters import BASE, Adapter, find_adapters
from svf_rl.experts.pool import ExpertPool
from svf_rl.experts.weight_changes import weight_changes
from svf_rl.models.arguments import ModelArguments
from svf_rl.reproduce.cells import find_windows, read_result, text_arguments
from svf_rl.storage.files import write_json
from svf_rl.storage.same_settings import difference


def measure_changes(spec: Mapping[str, Any]) -> None:
    """
    Make a cell of kind `"changes"`: the figures of [`svf_rl.svf.change.Change`] for each matrix of each adapter.

    Raises:
        SVFError: an adapter that is missing, damaged or of another base model.
    """
    model, out, adapters = ModelArguments(**spec["model"]), Path(spec["out"]), _adapters(spec)
    kept = _Kept(out, {name: {"adapter": adapter.fingerprint} for name, adapter in adapters.items()})
    kept.make(lambda name: {"matrices": [each.to_dict() for each in weight_changes(model, adapters[name].folder)]})
    write_json(out / "summary.json", {"adapters": kept.results()})


def score_text(spec: Mapping[str, Any]) -> None:
    """
    Make a cell of kind `"text"`: of the base model and each adapter the mean log-likelihood of a token in each window
    of a text, in nats, or `None` where it is not finite. The windows are the same for all, and so are their tokens.

    Raises:
        SVFError: a text or an adapter that cannot be read, windows that do not fit, or vLLM does not start.
    """
    arguments, out, adapters = text_arguments(spec), Path(spec["out"]), _adapters(spec)
    base, windows = find_windows(spec)
    common = {
        "model": base.fingerprint,
        "windows": hashlib.sha256(json.dumps(windows).encode()).hexdigest(),
        "dtype": base.arguments.dtype,
        "backend": arguments.backend,
    }
    settings = {name: {**common, "adapter": adapter.fingerprint} for name, adapter in adapters.items()}
    kept = _Kept(out, {BASE: common, **settings})
    prompts, texts = (list(part) for part in zip(*windows, strict=True))
    if pending := kept.pending():
        used = {name: str(adapters[name].folder) for name in pending if name != BASE}
        longest = max(len(prompt) + len(text) for prompt, text in windows)
        # one token more: vLLM takes no request that leaves none to write
        pool = ExpertPool(base.arguments, {}, used, engine=arguments, max_length=longest + 1)

        def score(name: str) -> list[float | None]:
            pool.use(None if name == BASE else name)
            return [_mean(scores) for scores in pool.loglikelihood(prompts, texts)]

        kept.make(score)
    results = kept.results()
    write_json(
        out / "summary.json",
        {
            "text": Path(spec["file"]).name,
            "window": spec["window"],
            "tokens": [len(text) for text in texts],
            "base": results.pop(BASE),
            "adapters": results,
        },
    )


class _Kept:
    """Results by name, each in a file of `folder` beside what it was made with; `settings` are those of now."""

    def __init__(self, folder: Path, settings: Mapping[str, Mapping[str, Any]]):
        self._files = {name: folder / f"{name}.json" for name in settings}
        self._settings = settings

    def pending(self) -> list[str]:
        """Names without a result, or with one that was made with other settings."""
        there = {name: read_result(file) for name, file in self._files.items()}
        return [
            name
            for name, found in there.items()
            if "result" not in found or difference(found.get("settings"), self._settings[name])
        ]

    def make(self, measure: Callable[[str], Any]) -> None:
        """Write the result of each pending name."""
        for name in self.pending():
            result = measure(name)
            write_json(self._files[name], {"settings": self._settings[name], "result": result})
            print(f"measured: {name}", flush=True)

    def results(self) -> dict[str, Any]:
        return {name: read_result(file)["result"] for name, file in self._files.items()}


def _adapters(spec: Mapping[str, Any]) -> dict[str, Adapter]:
    """By the name of the run."""
    places = spec["adapters"]
    return dict(zip(places, find_adapters(list(places.values())), strict=True))


def _mean(values: list[float]) -> float | None:
    mean = sum(values) / len(values)
    return mean if math.isfinite(mean) else None
