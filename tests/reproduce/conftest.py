"""Comparisons small enough for a test."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from recorded import ITEMS, SEEDS, answers, run_of

from svf_rl.reproduce.raw import KIND, VERSION, encode
from svf_rl.storage.json_files import normalize_json

QUICKSTART = Path(__file__).resolve().parents[2] / "recipes" / "quickstart.yaml"


SMALL = {
        "model": "quickstart",
        "seeds": [0],
        "training": {
            "test_items": 8, "validation_items": 8, "eval_steps": 2, "save_steps": 2,
            "per_device_train_batch_size": 16,
        },
        "experts": {
            "math": {"recipe": str(QUICKSTART), "skill": "math"},
            "code": {"recipe": str(QUICKSTART), "skill": "code"},
        },
        "unseen": {"exam": {"task": "exam"}},
        "few_shot": {"shots": 2, "population": 4, "generations": 1, "samples": 1},
        "evaluation": {"enforce_eager": True, "limit": 12},
}  # fmt: skip


@pytest.fixture
def write_comparison(tmp_path: Path) -> Callable[..., Path]:
    """Writes the small comparison, with other values for some keys (`None`: without the key), and returns the file."""

    def write(max_steps: int = 2, **changes: object) -> Path:
        values = {key: value for key, value in {**SMALL, **changes}.items() if value is not None}
        values["training"] = {**values["training"], "max_steps": max_steps}
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    return write


@pytest.fixture
def raw():
    """SVF 80, 82, 84; a variant 10 less with each seed, another as good on the average; base 50."""
    right = {"svf": [80, 82, 84], "less": [70, 72, 74], "other": [84, 82, 80]}
    runs = {f"math-{method}-seed{seed}": run_of(method, seed) for method in right for seed in SEEDS}
    runs["math-lora-seed0"] = {"expert": "math", "method": "lora", "seed": 0, "failed": "out of memory"}
    evaluated = {
        f"math-{m}-seed{seed}": encode(answers(n)) for m, counts in right.items() for seed, n in enumerate(counts)
    }
    evaluated["base"] = encode(answers(50))
    sampled = {item: [item < 50, item < 80] for item in range(ITEMS)}
    return normalize_json({
        "kind": KIND, "version": VERSION, "comparison": "small", "model": "tiny",
        "seeds": dict.fromkeys(("fine_tuning", "ablations", "probes"), SEEDS),
        "parts": ["fine_tuning", "ablations", "probes"], "notes": [], "failed": {"math-lora-seed0": "out of memory"},
        "experts": {"math": "gsm8k"}, "lora": {"adapter": "lora"}, "few_shot": "few-shot-3", "shots": [3],
        "variants": {
            "less": {"name": "less of it", "keys": {"core": "top:64"}}, "other": {"name": "other one", "keys": {}},
        },
        "dispatched": [], "ablated": ["math"], "runs": runs, "evaluations": {"math": evaluated},
        "probes": [{
            "name": "sampled", "expert": "math", "task": "gsm8k", "samples": 2, "methods": ["svf"],
            "temperature": 1.0, "options": {"shots": 0},
            "answers": {"base": encode(answers(50)), "math-svf-seed0": encode(sampled)},
        }],
        "texts": [{
            "name": "held-out text", "expert": "math", "methods": ["svf"], "text": "a.txt", "tokens": [3, 3, 1],
            "scores": {
                "base": [-2.0, -4.0, -9.0], "math-svf-seed0": [-2.1, -4.0, -1.0],
                "math-svf-seed1": [-2.3, None, -9.0],
            },
        }],
        "changes": {"math": {"math-svf-seed0": {
            "layer": [0, 2, None], "module": ["a", "a", "head"], "relative": [0.01, 0.03, 0.02],
            "stable_rank": [1.0, 2.0, 3.0], "effective_rank": [2.0, 3.0, 4.0], "diagonal": [1.0, 1.0, None],
        }}},
        "settings": {"math-svf": {"max_steps": 3}, "math-evaluation": {"evaluation": {"limit": 100}}},
        "adaptations": [], "hardware": {"processor": "a processor"}, "packages": {"torch": "2.13.0"},
        "seconds": {"cells": 10, "processes": 1.0, "jobs": 1, "this_call": 1.0, "made_now": 10, "by_cell": {}},
    })  # fmt: skip
