"""The quickstart's training with a real colocated vLLM."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from fakes import read_metrics
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from svf_rl.errors import SVFError
from svf_rl.generation import SyncReport
from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator
from svf_rl.quickstart import make_rows, model_path
from svf_rl.rewards import load_reward
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.svf import SVFConfig, svf_layers
from svf_rl.training.trainer import SVFReinforceTrainer

pytestmark = pytest.mark.vllm


def _rows(split: str, count: int) -> Dataset:
    rows = make_rows("math", split, count)
    return Dataset.from_list([{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows])


@pytest.fixture
def quickstart(
    vllm_engine: ColocatedVLLMGenerator, tokenizer: Any, tmp_path: Path
) -> Callable[..., SVFReinforceTrainer]:
    """`quickstart(name)`: a trainer of 3 updates of 8 prompts × 4 completions, evaluated before and after."""

    def build(name: str, own_engine: bool = False, peft_config: Any = None, **settings: Any) -> SVFReinforceTrainer:
        model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
        # the engine is shared: it must not start from what another test left in it
        vllm_engine.sync(model.requires_grad_(False), everything=True)
        args = SVFReinforceConfig(
            output_dir=str(tmp_path / name), use_cpu=True, report_to="none", per_device_train_batch_size=32,
            num_generations=4, max_steps=3, learning_rate=1e-2, beta=0.1, max_grad_norm=1.0, max_completion_length=48,
            use_vllm=True, gradient_checkpointing=False, save_strategy="no", disable_tqdm=True,
            eval_strategy="steps", eval_steps=3, **settings,
        )  # fmt: skip
        reward = load_reward({"name": "numeric"})
        return SVFReinforceTrainer(
            model, reward, args, _rows("train", 64), _rows("validation", 16), tokenizer,
            peft_config=peft_config or SVFConfig(task_type="CAUSAL_LM"), generator=None if own_engine else vllm_engine,
        )  # fmt: skip

    return build


def _differences(trainer: SVFReinforceTrainer) -> list[float]:
    key = "sampling/logp_difference"
    return [line[key] for line in read_metrics(Path(trainer.args.output_dir)) if key in line]


def test_vllm_samples_from_the_policy_in_training_and_one_seed_decides_everything(quickstart: Any) -> None:
    runs = []
    for name in ("first", "second"):
        trainer = quickstart(name)
        trainer.train()
        differences = _differences(trainer)
        assert len(differences) == 3
        assert max(differences) < 1e-4
        runs.append(
            (
                read_metrics(Path(trainer.args.output_dir)),
                [p.detach().clone() for p in trainer.model.parameters() if p.requires_grad],
            )
        )
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))
    assert any((p - 1).abs().max() > 1e-3 for p in runs[0][1])
    other = quickstart("other", seed=43)
    other.train()
    assert read_metrics(Path(other.args.output_dir)) != runs[0][0]


def test_an_engine_that_is_not_synced_is_seen(quickstart: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above."""
    trainer = quickstart("stale")
    monkeypatch.setattr(trainer.generator, "sync", lambda model, everything=False: SyncReport())
    trainer.train()
    first, *later = _differences(trainer)
    assert first < 1e-4
    assert min(later) > 1e-4


def test_num_iterations_works_with_the_correction(quickstart: Any) -> None:
    trainer = quickstart("twice", num_iterations=2)
    trainer.train()
    first, second, third = _differences(trainer)
    assert first < 1e-4 < second
    assert third < 1e-4


@pytest.mark.parametrize("core", ["diagonal", "projected:13"])
def test_an_engine_with_the_model_s_own_factors_trains_the_same(quickstart: Any, core: str) -> None:
    """A sync writes multipliers: no weight of the engine changes."""
    merged, shared = (
        quickstart("merged", peft_config=SVFConfig(core=core, task_type="CAUSAL_LM")),
        quickstart(
            "shared", own_engine=True, peft_config=SVFConfig(core=core, task_type="CAUSAL_LM"), vllm_weights="shared",
            vllm_enforce_eager=True, vllm_max_model_length=128,
        ),
    )  # fmt: skip
    weights = {name: p.clone() for name, p in shared.generator.model.named_parameters()}
    for trainer in (merged, shared):
        trainer.train()
    assert all(torch.equal(weights[name], p) for name, p in shared.generator.model.named_parameters())
    assert max(_differences(shared)) < 1e-4
    found, expected = (
        {name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad}
        for trainer in (shared, merged)
    )
    for name, value in expected.items():
        assert (value - float(core == "diagonal")).abs().max() > 1e-3
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)
    syncs = [line["sync/bytes"] for line in read_metrics(Path(shared.args.output_dir)) if "sync/bytes" in line]
    multipliers = [layer.active_multiplier() for layer in svf_layers(shared.model).values()]
    assert set(syncs) == {4 * sum(m.numel() for m in multipliers)}


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"peft_config": LoraConfig(task_type="CAUSAL_LM", target_modules=["up_proj"])}, "an adapter other than SVF"),
        ({"peft_config": SVFConfig(task_type="CAUSAL_LM", modules_to_save=["lm_head"])}, "modules_to_save"),
        ({"peft_config": SVFConfig(task_type="CAUSAL_LM", core="band:1")}, "a core that mixes singular directions"),
        ({"vllm_tensor_parallel_size": 2}, "vllm_tensor_parallel_size above 1"),
        ({"vllm_mode": "server", "vllm_server_base_url": "http://localhost:1"}, "vllm_mode: server"),
    ],
)
def test_what_cannot_be_shared_is_said(quickstart: Any, settings: dict[str, Any], what: str) -> None:
    with pytest.raises(SVFError, match=f"vllm_weights: shared does not go with {what}.*: set it to merged"):
        quickstart("refused", own_engine=True, vllm_weights="shared", **settings)
