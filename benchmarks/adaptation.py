"""Adapting the quickstart's experts to its exam: rows of one engine against weight syncs of one with whole weights.

    python benchmarks/adaptation.py [--repeats ROUNDS] [--out results.json]

Three experts and a dispatch expert are trained as in `docs/guides/experts.md`. Then the few-shot search looks for α,
and dispatch classifies and answers 512 prompts, on either kind of engine. Each engine lives in a process of its own;
they take turns. Seconds are those of search and dispatch alone, without starts; both ways must find the same.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from common import arguments, hardware, ratio, report, running, seconds

SKILLS = ("math", "choice", "code", "dispatch")
CLASSES = {"math": "math", "reasoning": "choice", "code": "code"}
ENGINES = ("rows", "merged")
WORK = ("few-shot search", "dispatch")


def train(folder: Path) -> dict[str, str]:
    """The folder of each skill's expert."""
    runs = "[" + ", ".join(f"{{skill: {skill}}}" for skill in SKILLS) + "]"
    command = [sys.executable, "-m", "svf_rl.train", "quickstart", f"--runs={runs}", "--output_dir", str(folder)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return {skill: str(folder / f"skill={skill}") for skill in SKILLS}


def contender(pipe: Connection, kind: str, folders: dict[str, str]) -> None:
    """A process's life: does the work of each order, and sends what it found."""
    from svf_rl.adaptation.arguments import FewShotArguments
    from svf_rl.adaptation.classifier import find_classifier_prompt
    from svf_rl.adaptation.dispatch import dispatch
    from svf_rl.adaptation.few_shot import adapt
    from svf_rl.adaptation.few_shot_run import LABELLED
    from svf_rl.evaluation.arguments import EvaluationArguments
    from svf_rl.evaluation.base_model import find_base_model
    from svf_rl.evaluation.items import load_items
    from svf_rl.experts.arguments import SHARE_BESIDE_EXPERTS
    from svf_rl.experts.backends import start_vllm
    from svf_rl.experts.pool import ExpertPool

    asked = EvaluationArguments("quickstart", tasks=["exam"], enforce_eager=True)
    base, length = find_base_model(asked), 512
    merged = start_vllm(base.arguments, asked, length, SHARE_BESIDE_EXPERTS) if kind == "merged" else None
    experts = {name: folder for name, folder in folders.items() if name in CLASSES.values()}
    others = {"dispatch": folders["dispatch"]}
    pool = ExpertPool(base.arguments, experts, others, merged, engine=asked, max_length=length)
    labelled = load_items("exam", asked, base.tokenizer, splits=LABELLED)
    items = load_items("exam", asked, base.tokenizer)
    prompt = find_classifier_prompt(base.arguments.location, Path(folders["dispatch"]))
    pipe.send("ready")
    while (order := pipe.recv()) is not None:
        if order == "dispatch":
            done = dispatch(pool, items, CLASSES, prompt, classifier="dispatch")
            pipe.send([answer.correct for answer in done.answers])
        else:
            pipe.send(adapt(pool, labelled, FewShotArguments()).alpha.tolist())


def main() -> None:
    args = arguments(__doc__, __file__)
    times: dict[str, dict[str, list[float]]] = {work: {kind: [] for kind in ENGINES} for work in WORK}
    found: dict[str, list[Any]] = {work: [] for work in WORK}
    with tempfile.TemporaryDirectory() as name:
        folders = train(Path(name))
        with running(contender, {kind: (kind, folders) for kind in ENGINES}) as orders:
            for turn in range((args.repeats or 5) + 1):
                for work in WORK:
                    for kind in ENGINES[turn % 2 :] + ENGINES[: turn % 2]:
                        elapsed = seconds(lambda: found[work].append(orders[kind](work)))  # noqa: B023
                        if turn:  # the first one warms up
                            times[work][kind].append(elapsed)
    result = {
        "hardware": hardware("cpu"),
        "seconds": {work: {kind: statistics.median(of) for kind, of in times[work].items()} for work in WORK},
        "ratios": {work: ratio(times[work], *ENGINES) for work in WORK},
        "same": {work: all(one == of[0] for one in of) for work, of in found.items()},
        "alpha": found["few-shot search"][0],
    }
    rows = [
        {"work": work}
        | {f"{kind} (s)": f"{value:.2f}" for kind, value in result["seconds"][work].items()}
        | {"rows / merged": f"{result['ratios'][work]:.2f}", "the same found": str(result["same"][work])}
        for work in WORK
    ]
    report(result, rows, args.out)


if __name__ == "__main__":
    main()
