"""Tables of the page of measurements, from the JSON files that the benchmarks wrote."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from generate import methods

RESULTS = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "results"
MIB = 2**20
Rows = list[dict[str, str]]


def measurement(name: str) -> str:
    """
    The Markdown of one benchmark, or of one sentence about it.

    Args:
        name (`str`): a file in `benchmarks/results/` without its ending, with `.part` for another part of it; or
            `machines`.
    """
    if name == "machines":
        return _table(_machines())
    found = _TABLES[name](json.loads((RESULTS / f"{name.partition('.')[0]}.json").read_text()))
    return _table(found) if isinstance(found, list) else found


def unused(pages: str) -> list[str]:
    """Results that no page shows."""
    return [path.stem for path in sorted(RESULTS.glob("*.json")) if f"generated: measurement {path.stem} " not in pages]


def _table(rows: Rows) -> str:
    heads = list(rows[0])
    numbers = [all(re.fullmatch(r"[\d.,]*( ×)?", row[head]) for row in rows) for head in heads]
    lines = [heads, ["---:" if right else "---" for right in numbers], *([row[head] for head in heads] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _machines() -> Rows:
    rows: dict[str, list[str]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text())["hardware"]
        if isinstance(found, str):
            machine = found
        elif "gpu" in found:
            machine = f"{found['gpu']}, driver {found['driver']}, CUDA {found['cuda']}"
        else:
            machine = f"{found['cpu']}, {found['cores']} cores, {found['threads']} thread"
            machine += "s" if found["threads"] > 1 else ""
            machine += f"; torch {found['versions']['torch']}"
        rows.setdefault(machine.replace("1 threads used", "1 thread"), []).append(path.stem)
    return [{"machine": machine, "measured on it": ", ".join(names)} for machine, names in rows.items()]


def _update_step(result: dict[str, Any]) -> Rows:
    rows = []
    on_gpu = "gpu" in result["hardware"]
    for update in result["updates"]:
        seconds = update["seconds" if on_gpu else "cpu_seconds"]
        peaks, ratios = update["peak_bytes"], update["ratios"]
        rows.append(
            {"": "with exact KL" if update["exact_kl"] else "without reference"}
            | {f"{_METHODS[name]} (s)": f"{seconds[name]:.{2 if on_gpu else 1}f}" for name in _METHODS}
            | {"SVF / LoRA": f"{ratios['svf / lora']:.2f}", "SVF / dense": f"{ratios['svf / dense']:.2f}"}
            | {f"{_METHODS[name]} (MiB)": f"{peaks[name] / MIB:.0f}" for name in _METHODS}
        )
    return rows


def _packing(result: dict[str, Any]) -> Rows:
    return [
        {"": case["case"], "none (s)": f"{case['seconds']['none']:.1f}"}
        | {name: f"{value:.2f}" for name, value in case["ratios"].items()}
        for case in result["cases"]
    ]


_METHODS = {"svf": "SVF", "lora": "LoRA", "dense": "dense"}


def _update_step_held(result: dict[str, Any]) -> str:
    """What each contender holds on the GPU between updates."""
    held = {name: result["loading"][name]["held_bytes"] / 1e9 for name in _METHODS}
    return (
        f"Between updates SVF holds {held['svf']:.1f} GB, LoRA {held['lora']:.1f} GB and dense {held['dense']:.1f} GB."
    )


def _training_step(result: dict[str, Any]) -> Rows:
    return [
        {"": _METHODS[name], "a step (s)": f"{result['seconds'][name]:.2f}"}
        | {f"{part} (s)": f"{value:.3f}" for part, value in result["phases"][name].items()}
        | {"SVF / LoRA": f"{result['ratio']:.2f}" if name == "svf" else ""}
        for name in ("svf", "lora")
    ]


def _weight_sync(result: dict[str, Any]) -> Rows:
    return [
        {
            "model": f"{sync['layers']} layers, {sync['dtype']}",
            "here (s)": f"{sync['seconds']['ours']:.1f}",
            "TRL (s)": f"{sync['seconds']['trl']:.1f}",
            "ratio": f"{sync['ratio']:.2f}",
            "here (MB)": f"{sync['bytes_pushed']['ours'] / 1e6:.0f}",
            "TRL (MB)": f"{sync['bytes_pushed']['trl'] / 1e6:.0f}",
            "peak here": f"{sync['peak_matrices_fp32']['ours']:.1f}",
            "peak TRL": f"{sync['peak_matrices_fp32']['trl']:.1f}",
        }
        for sync in result["syncs"]
    ]


def _server_sync(result: dict[str, Any]) -> Rows:
    return [
        {
            "model": f"{row['model']}, {row['dtype']}",
            "z (kB)": f"{row['bytes']['z'] / 1e3:,.1f}",
            "full (kB)": f"{row['bytes']['full'] / 1e3:,.0f}",
            "z (s)": f"{row['seconds']['z']:.2f}",
            "full (s)": f"{row['seconds']['full']:.2f}",
            "full / z": f"{row['full_over_z']:.1f}",
        }
        for row in result["rows"]
    ]


def _rollouts(result: dict[str, Any]) -> Rows:
    return [
        {
            "model": engine["model"],
            "synced (tokens/s)": f"{engine['tokens_per_second']['synced']:.0f}",
            "against untouched": f"{engine['ratios']['not synced']:.2f}",
            "against vLLM as it comes": f"{engine['ratios']['vLLM as it comes']:.2f}",
        }
        for engine in result["engines"]
    ]


def _decompose(result: dict[str, Any]) -> Rows:
    names = ("thin_svd", "torch.svd fp32", "torch.linalg.svd fp64", "cold start", "cached start")
    return [
        {"matrix (out × in)": f"{row['shape'][0]} × {row['shape'][1]}"}
        | {f"{name} (s)": f"{row['seconds'][name]:.3f}" for name in names}
        | {"cached start is faster by": f"{row['cached_speedup']:.0f} ×"}
        for row in result["rows"]
    ]


def _verifiers(result: dict[str, Any]) -> Rows:
    median = {name: sorted(values)[len(values) // 2] for name, values in result["checks_a_second"].items()}
    ratios = result["ratios"]
    return [
        {"checks": "`unit_tests`", "a second": f"{median['unit_tests']:.0f}", "`unit_tests` / this": ""},
        {
            "checks": "one bubblewrap and one interpreter for each program",
            "a second": f"{median['bubblewrap a program']:.0f}",
            "`unit_tests` / this": f"{ratios['unit_tests / bubblewrap a program']:.2f}",
        },
        {
            "checks": "one interpreter for each program, no sandbox",
            "a second": f"{median['interpreter a program']:.0f}",
            "`unit_tests` / this": f"{ratios['unit_tests / interpreter a program']:.2f}",
        },
    ]


def _verifiers_math(result: dict[str, Any]) -> Rows:
    median = {name: sorted(values)[len(values) // 2] for name, values in result["checks_a_second"].items()}
    return [
        {"checks": "`math`", "a second": f"{median['math']:.0f}", "`math` / this": ""},
        {
            "checks": "math-verify in one process, without a time limit",
            "a second": f"{median['math-verify in process']:.0f}",
            "`math` / this": f"{result['ratios']['math / math-verify in process']:.1f}",
        },
    ]


def _evaluation(result: dict[str, Any]) -> Rows:
    return [
        {
            "task": f"`{task['task']}`",
            "items": str(task["items"]),
            "`svf-rl eval` (items/s)": f"{task['items_per_second']['svf-rl eval']:.0f}",
            "vLLM alone (items/s)": f"{task['items_per_second']['bare vLLM']:.0f}",
            "ratio": f"{task['ratio']:.2f}",
        }
        for task in result["tasks"]
    ]


def _scaling(result: dict[str, Any]) -> Rows:
    def whole(parts: dict[str, float]) -> float:
        return sum(parts.values())

    one = whole(result["seconds"]["1 process"])
    return [
        {
            "processes": name.removesuffix(" process"),
            "rollout (s)": f"{parts['rollout']:.2f}",
            "sync (s)": f"{parts['sync']:.2f}",
            "update (s)": f"{parts['update']:.2f}",
            "together (s)": f"{whole(parts):.2f}",
            "against one process": f"{whole(parts) / one:.2f}",
            "peak of a process (MiB)": f"{result['peak_bytes'][name] / MIB:.0f}",
        }
        for name, parts in result["seconds"].items()
    ]


def _scaling_tokens(result: dict[str, Any]) -> Rows:
    found = result["rollout_tokens_per_second"]
    return [{"sequences together": "tokens/s"} | {number: f"{value:.0f}" for number, value in found.items()}]


def _memory_plan(result: dict[str, Any]) -> Rows:
    shallow, deep = result["layers"]
    names = {
        ("deep", "shallow"): f"{deep} layers − {shallow} layers",
        ("deep, checkpointed", "shallow, checkpointed"): "the same, both with gradient checkpointing",
        ("deep", "deep, checkpointed"): f"{deep} layers, without gradient checkpointing − with it",
        ("deep, padded", "deep, checkpointed"): "the same, without it in padded rows (`train_packing: none`)",
    }
    return [_planned(names[tuple(pair["pair"])], pair) for pair in result["pairs"]]


def _memory_processes(result: dict[str, Any]) -> Rows:
    few, many = result["layers"]
    return [
        _planned(f"each of two processes, {kind}, {many} layers − {few} layers", pair)
        for kind, pair in result["pairs"].items()
    ]


def _planned(name: str, pair: dict[str, Any]) -> dict[str, str]:
    return {
        "difference": name,
        "measured (MiB)": f"{pair['measured_bytes'] / MIB:.0f}",
        "planned (MiB)": f"{pair['planned_bytes'] / MIB:.0f}",
        "planned / measured": f"{pair['ratio']:.3f}",
    }


def _expert_switch(result: dict[str, Any]) -> Rows:
    names = {
        "svf_rows": "SVF, a row each",
        "svf": "SVF, merged by a sync",
        "lora_one_slot": "vLLM's LoRA, one slot",
        "lora_all_slots": "vLLM's LoRA, all loaded",
    }
    return [
        {
            "experts": name,
            "switch (s)": f"{result['switch_seconds'][key]:.3f}",
            "tokens/s": f"{result['tokens_a_second'][key]:.0f}",
            "against merged": f"{result['tokens_relative_to_merged'][key]:.2f}",
        }
        for key, name in names.items()
    ]


def _worth(result: dict[str, Any]) -> str:
    """From how many tokens on a merge costs less than the factored layers do at each token."""
    switch, speed = result["switch_seconds"], result["tokens_a_second"]
    dearer = 1 / speed["svf_rows"] - 1 / speed["svf"]
    if dearer <= 0:
        return "Here merging never pays."
    tokens = round((switch["svf"] - switch["svf_rows"]) / dearer / 100) * 100
    return f"Here merging pays where one expert answers about {tokens:,} tokens before the next is asked."


def _numerics(result: dict[str, Any]) -> Rows:
    return [
        {"matrix (out × in)": f"`{row['matrix']}`, {row['shape'][0]} × {row['shape'][1]}"}
        | {head: f"{row[key]:.5f}" for head, key in _OUTPUTS.items()}
        for row in result["relative_errors"]
    ]


_OUTPUTS = {
    "factored": "factored",
    "merged": "merged",
    "factored at z = 1": "factored_at_1",
    "base": "base",
    "weight, merged": "merged_weight",
}


def _numerics_log_probabilities(result: dict[str, Any]) -> Rows:
    return [
        {
            "difference of log-probabilities": name.replace("m = 1", "z = 1"),
            "mean": f"{found['mean']:.3f}",
            "99th percentile": f"{found['p99']:.2f}",
            "largest": f"{found['max']:.2f}",
            "mean KL": f"{found['mean_kl']:.4f}",
        }
        for name, found in result["log_probabilities"].items()
    ]


def _quickstart(result: dict[str, Any]) -> Rows:
    return [
        {
            "generation": run["generation"],
            "dtype": run["dtype"],
            "accuracy before": f"{run['base_accuracy']:.3f}",
            "after": f"{run['accuracy']:.3f}",
        }
        for run in result["runs"]
    ]


def _evolution(result: dict[str, Any]) -> Rows:
    rows = []
    for skill in dict.fromkeys(run["skill"] for run in result["runs"]):
        for recipe in dict.fromkeys(run["recipe"] for run in result["runs"]):
            own = [run for run in result["runs"] if (run["skill"], run["recipe"]) == (skill, recipe)]
            rows.append(
                {
                    "skill": skill,
                    "recipe": f"`{recipe}`",
                    "accuracy before": f"{_mean(own, 'base_accuracy'):.3f}",
                    "after": f"{_mean(own, 'accuracy'):.3f}",
                    "of the seeds": ", ".join(f"{run['accuracy']:.3f}" for run in own),
                    "tokens": f"{_mean(own, 'tokens'):,.0f}",
                    "peak (MiB)": f"{_mean(own, 'peak_bytes') / MIB:.0f}",
                    "of training (MiB)": f"{_mean(own, 'training_bytes') / MIB:.0f}",
                }
            )
    return rows


def _several_runs(result: dict[str, Any]) -> Rows:
    def seconds(threads: str, way: str, kind: str) -> str:
        return f"{median(each[threads][way][kind] for each in result['rounds']):.0f}"

    return [
        {
            "threads": threads,
            "seconds of the": kind,
            "one process": seconds(threads, "together", kind),
            "five, one after the other": seconds(threads, "alone", kind),
            "ratio": f"{ratio:.2f}",
        }
        for threads, ratios in result["ratios"].items()
        for kind, ratio in ratios.items()
    ]


def _mean(runs: list[dict[str, Any]], key: str) -> float:
    return sum(run[key] for run in runs) / len(runs)


def _vllm_agreement(result: dict[str, Any]) -> Rows:
    return [
        {
            "dtype": row["dtype"],
            "weights": "shared, compiled"
            if row.get("shared") and not row["eager"]
            else "shared"
            if row.get("shared")
            else "merged",
            "sleep mode": "on" if row["sleep"] else "off",
            "vLLM's attention": f"`{row['attention']}`",
            "largest difference": f"{max(row['largest_difference']):.4f}",
        }
        for row in result["rows"]
    ]


def _one_copy(result: dict[str, Any]) -> Rows:
    return [
        {"layers": layers, "vLLM's weights": weights}
        | {
            "held (GB)": f"{(found['held'] - found['cache']) / 1e9:.2f}",
            "peak of loading (GB)": f"{(found['peak'] - found['cache']) / 1e9:.2f}",
        }
        for layers, of_weights in result["memory"].items()
        for weights, found in of_weights.items()
    ]


def _one_copy_phases(result: dict[str, Any]) -> Rows:
    return [
        {"vLLM's weights": weights, "a step (s)": f"{result['seconds'][weights]:.3f}"}
        | {f"{phase} (s)": f"{seconds:.4f}" for phase, seconds in phases.items()}
        for weights, phases in result["phases"].items()
    ]


def _mixed_batches(result: dict[str, Any]) -> Rows:
    ratios = result["ratios"]
    return [
        {"adapters": name.replace("base", "none (the base model)"), "tokens/s": f"{rate:.0f}"}
        | {f"against {other}": _times(ratios.get(f"{name} / {other}")) for other in ("base", "LoRA")}
        for name, rate in result["tokens_per_second"].items()
    ]


def _served_adapters(result: dict[str, Any]) -> Rows:
    ratios = result["ratios"]
    return [
        {"adapters": name.replace("merged", "none (one merged model)"), "tokens/s": f"{rate:.0f}"}
        | {
            f"against {label}": _times(ratios.get(f"{name} / {other}"))
            for label, other in (("a merged model", "merged"), ("as many LoRA", f"{name.split()[0]} LoRA"))
        }
        for name, rate in result["tokens_per_second"].items()
    ]


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f} ×"


def _adaptation(result: dict[str, Any]) -> Rows:
    return [
        {"work": work}
        | {f"{kind} (s)": f"{value:.2f}" for kind, value in of.items()}
        | {"ratio": f"{result['ratios'][work]:.2f}"}
        for work, of in result["seconds"].items()
    ]


def _demo_real(result: dict[str, Any]) -> Rows:
    return [
        {"seed": str(run["seed"])}
        | {
            f"{kind}, {when} (%)": f"{100 * run[kind][when]:.1f}"
            for kind in ("greedy", "sampled")
            for when in ("before", "after")
        }
        | {"minutes": f"{sum(run['seconds'].values()) / 60:.0f}"}
        for run in result["runs"]
    ]


def _endpoint(result: dict[str, Any]) -> Rows:
    return [{"who answers": name, "accuracy": f"{value:.3f}"} for name, value in result["accuracy"].items()]


def _endpoint_latency(result: dict[str, Any]) -> Rows:
    return [
        {"model": name, "median seconds": f"{value:.3f}"}
        | {"against a named expert": _times(result["ratio"]) if name == "auto" else ""}
        for name, value in result["seconds"].items()
    ]


def _architectures(result: dict[str, Any]) -> Rows:
    heads = ("loss", "transformers", "colocated", "factored", "server", "merge")
    return [
        {"architecture": f"`{name}`"}
        | {head: "refused" if isinstance(found[head], str) else f"{found[head]:.0e}" for head in heads}
        for name, found in result["architectures"].items()
    ]


def _architectures_refused(result: dict[str, Any]) -> str:
    """The lines with which cells are refused, each once."""
    lines: dict[str, list[str]] = {}
    for name, found in result["architectures"].items():
        for line in dict.fromkeys(value for value in found.values() if isinstance(value, str)):
            lines.setdefault(line.removeprefix("refused: "), []).append(f"`{name}`")
    return "\n".join(["Refused:", "", *(f"- {', '.join(names)}: `{line}`" for line, names in lines.items())])


_TABLES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "adaptation": _adaptation,
    "endpoint": _endpoint,
    "endpoint.latency": _endpoint_latency,
    "architectures": _architectures,
    "architectures.refused": _architectures_refused,
    "decompose": _decompose,
    "demo_real": _demo_real,
    "decompose_h100_8b": _decompose,
    "evaluation": _evaluation,
    "evolution": _evolution,
    "methods_cpu": methods.methods,
    "methods_h200": methods.methods,
    "methods_h200.settings": methods.settings,
    "expert_switch": _expert_switch,
    "expert_switch.worth": _worth,
    "memory_plan": _memory_plan,
    "memory_plan_h100_8b": _memory_plan,
    "memory_processes": _memory_processes,
    "numerics_h100_8b": _numerics,
    "numerics_h100_8b.log_probabilities": _numerics_log_probabilities,
    "mixed_batches": _mixed_batches,
    "one_copy": _one_copy,
    "one_copy.phases": _one_copy_phases,
    "one_copy_h100_8b": _one_copy,
    "one_copy_h100_8b.phases": _one_copy_phases,
    "packing": _packing,
    "quickstart_h100": _quickstart,
    "rollouts": _rollouts,
    "scaling": _scaling,
    "scaling.tokens": _scaling_tokens,
    "server_sync": _server_sync,
    "served_adapters": _served_adapters,
    "several_runs": _several_runs,
    "training_step": _training_step,
    "update_step": _update_step,
    "update_step_h100_8b": _update_step,
    "update_step_h100_8b.held": _update_step_held,
    "verifiers": _verifiers,
    "verifiers.math": _verifiers_math,
    "vllm_agreement_h100": _vllm_agreement,
    "weight_sync": _weight_sync,
}
