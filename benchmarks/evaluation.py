"""Evaluation items/s with vLLM, against a bare loop over `vllm.LLM.generate` on the same prompts.

    python benchmarks/evaluation.py [--device cuda] [--repeats N] [--out results.json]

One engine does both in turns: an evaluation (generate, grade, write the records) of 512 items of the quickstart, and
vLLM's own `generate` on their prompts, with nothing done to what it returns. The start of the engine is not counted.
"""

import os
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from common import arguments, hardware, interleaved, ratio, report
from vllm import SamplingParams

from svf_rl.evaluation.arguments import EvaluationArguments
from svf_rl.evaluation.engine import Engine, base_model, load_config
from svf_rl.evaluation.items import TaskItems, load_items
from svf_rl.evaluation.run import Run, finish
from svf_rl.models.loading import load_tokenizer

TASKS = ["quickstart:math", "quickstart:choice"]
OURS, BARE = "svf-rl eval", "bare vLLM"


def bare_loop(llm: Any, task: TaskItems) -> None:
    """vLLM alone. Its prefix cache is emptied as the evaluation does: the prompts of the round before are in it."""
    llm.reset_prefix_cache()
    llm.generate(
        [{"prompt_token_ids": ids} for ids in task.prompt_ids],
        SamplingParams(temperature=0.0, max_tokens=task.sampling.max_tokens),
        use_tqdm=False,
    )


def evaluation(engine: Engine, task: TaskItems, tokenizer: Any, settings: EvaluationArguments) -> None:
    """All of what `svf-rl eval` does for one task once its engine is up."""
    run = Run(None, task, [(index, 0) for index in range(len(task.rows))])
    with tempfile.TemporaryDirectory() as folder:
        finish(run, [], Path(folder) / "records.jsonl", engine, tokenizer, settings)


def main() -> None:
    args = arguments(__doc__, __file__)
    repeats = args.repeats or 15
    settings = EvaluationArguments("quickstart", TASKS, enforce_eager=True)
    model = base_model(settings, load_config(settings))
    tokenizer = load_tokenizer(model)
    tasks = [load_items(name, settings, tokenizer) for name in TASKS]
    engine = Engine(settings, model, [], tokenizer, max_length=768)
    measurements = []
    for task in tasks:
        contenders = {
            OURS: partial(evaluation, engine, task, tokenizer, settings),
            BARE: partial(bare_loop, engine.generator.llm, task),
        }
        times = interleaved(contenders, repeats)
        measurements.append(
            {
                "task": task.name,
                "items": len(task.rows),
                "items_per_second": {name: len(task.rows) / statistics.median(t) for name, t in times.items()},
                "ratio": ratio(times, BARE, OURS),
            }
        )
    result = {"hardware": hardware(args.device), "model": "quickstart", "repeats": repeats, "tasks": measurements}
    rows = [
        {"task": m["task"], "items": str(m["items"])}
        | {f"{name} (items/s)": f"{value:.1f}" for name, value in m["items_per_second"].items()}
        | {f"{OURS} / {BARE}": f"{m['ratio']:.3f}"}
        for m in measurements
    ]
    report(result, rows, args.out)


if __name__ == "__main__":
    main()
