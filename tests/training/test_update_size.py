"""`update/relative_change`: how far a step moves the weights, from their factors alone."""

import pytest
import torch

from svf_rl.svf import SVFConfig, svf_layers


def _trained(make_trainer, scripted, **settings: object):
    trainer = make_trainer(generator=scripted(), logging_steps=1, **settings)
    layers = svf_layers(trainer.model)
    before = {name: layer.merged_weight() for name, layer in layers.items()}
    trainer.train()
    after = {name: layer.merged_weight() for name, layer in layers.items()}
    change = torch.stack([(after[name] - before[name]).norm() for name in layers]).norm()
    whole = torch.stack([weight.norm() for weight in after.values()]).norm()
    logged = [line["update/relative_change"] for line in trainer.state.log_history if "update/relative_change" in line]
    return logged, (change / whole).item()


def test_it_is_the_change_of_the_merged_weights(make_trainer, scripted) -> None:
    (logged,), dense = _trained(make_trainer, scripted)
    assert logged == pytest.approx(dense, rel=1e-4)


def test_with_adam_it_is_the_learning_rate_at_first(make_trainer, scripted) -> None:
    (logged,), _ = _trained(make_trainer, scripted, optim="adamw_torch", learning_rate=1e-3)
    assert logged == pytest.approx(1e-3, rel=1e-2)


def test_a_core_of_few_values_moves_less(make_trainer, scripted) -> None:
    config = SVFConfig(task_type="CAUSAL_LM", core="bottom:2")
    (logged,), dense = _trained(make_trainer, scripted, optim="adamw_torch", learning_rate=1e-3, peft_config=config)
    assert logged == pytest.approx(dense, rel=1e-3)
    assert logged < 5e-4


@pytest.mark.parametrize("core", ["band:2", "block:3", "block:3:bottom", "block:3:random"])
def test_a_core_that_mixes_counts_with_all_of_its_entries(make_trainer, scripted, core: str) -> None:
    config = SVFConfig(task_type="CAUSAL_LM", core=core)
    (logged,), dense = _trained(make_trainer, scripted, optim="adamw_torch", learning_rate=1e-1, peft_config=config)
    assert logged == pytest.approx(dense, rel=1e-3)
