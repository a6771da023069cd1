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

from svf_rl.evaluation.answers import answer_items
from svf_rl.evaluation.arguments import EvaluationArguments
from svf_rl.evaluation.base_model import find_base_model
from svf_rl.evaluation.items import TaskItems, load_items
from svf_rl.experts.pool import ExpertPool

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


def evaluation(pool: ExpertPool, task: TaskItems, settings: EvaluationArguments) -> None:
    """All of what `svf-rl eval` does for one task once its engine is up."""
    keys = [(index, 0) for index in range(len(task.rows))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        answer_items(pool, None, task, keys, path, label="base", batch_size=settings.batch_size)


def main() -> None:
    args = arguments(__doc__, __file__)
    repeats = args.repeats or 15
    settings = EvaluationArguments("quickstart", TASKS, enforce_eager=True)
    base = find_base_model(settings)
    tasks = [load_items(name, settings, base.tokenizer) for name in TASKS]
    pool = ExpertPool(base.arguments, {}, {}, engine=settings, max_length=768)
    measurements = []
    for task in tasks:
        contenders = {
            OURS: partial(evaluation, pool, task, settings),
            BARE: partial(bare_loop, pool.generator.llm, task),
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
