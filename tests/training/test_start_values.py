"""KL towards the start of a run: the reference is a frozen model with the values of then."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import read_metrics
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import TrainerCallback

from svf_rl.errors import SVFError
from svf_rl.svf import SVFConfig
from svf_rl.training.start_values import FILE

Make = Callable[..., Any]
KINDS = {
    "diagonal": SVFConfig(task_type="CAUSAL_LM"),
    "sigmoid": SVFConfig(task_type="CAUSAL_LM", parameterization="sigmoid", renormalize=True),
    "mixing, with biases": SVFConfig(task_type="CAUSAL_LM", core="band:1", biases=True),
    "one vector for all": SVFConfig(task_type="CAUSAL_LM", core="projected:13"),
    "output layer": SVFConfig(task_type="CAUSAL_LM", modules_to_save=["lm_head"]),
    "LoRA": LoraConfig(r=4, target_modules=["up_proj"], task_type="CAUSAL_LM", lora_dropout=0.5),
}
SETTINGS = {"beta": 0.5, "kl_reference": "start", "learning_rate": 0.05}


def moved(model: Any, seed: int = 1) -> Any:
    """`model` with trained values that are not those of a new adapter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def trained_before(tiny_llama: Make) -> Callable[[Any], Any]:
    """`trained_before(config)`: a model whose adapter has been trained."""
    return lambda config: moved(get_peft_model(tiny_llama(tied=False), config))


def batch_of(tokenizer: Any) -> dict[str, Tensor]:
    ids = torch.tensor(tokenizer("How many? 12 and 7 more.")["input_ids"])[None]
    ones = torch.ones_like(ids)
    return {"prompt_ids": ids[:, :6], "prompt_mask": ones[:, :6], "completion_ids": ids[:, 6:],
            "completion_mask": ones[:, 6:]}  # fmt: skip


def logps_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    with torch.no_grad():
        logits = model.eval()(input_ids=ids).logits[0, 5:-1]
    return logits.log_softmax(1).gather(1, batch["completion_ids"].T)[:, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_a_frozen_model_with_the_values_of_the_start(
    make_trainer: Make, scripted: Make, trained_before: Make, tokenizer: Any, kind: str
) -> None:
    trainer = make_trainer(
        trained_before(KINDS[kind]), peft_config=False, generator=scripted(), kl_type="k3", max_steps=3, **SETTINGS
    )
    frozen, batch = trained_before(KINDS[kind]), batch_of(tokenizer)
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model)
    after = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        found = trainer.loss.statistics(model.train(), batch, with_reference=True)
    torch.testing.assert_close(found.ref_logps, logps_of(frozen, batch), rtol=0, atol=1e-5)
    own = logps_of(model, batch)
    assert (own - found.ref_logps).abs().max() > 1e-3  # it has moved since
    # and what is trained is as it was before the pass
    assert all(torch.equal(p, after[name]) for name, p in model.named_parameters())
    if kind != "LoRA":  # whose dropout the policy has, and the reference has not
        torch.testing.assert_close(found.logps, own, rtol=0, atol=1e-5)
        assert next(line["kl"] for line in trainer.state.log_history if "kl" in line) == 0


def test_the_base_model_is_the_reference_unless_that_is_asked_for(
    make_trainer: Make, scripted: Make, trained_before: Make
) -> None:
    settings = {**SETTINGS, "kl_reference": "base"}
    trainer = make_trainer(trained_before(KINDS["diagonal"]), peft_config=False, generator=scripted(), **settings)
    trainer.train()
    assert trainer.state.log_history[0]["kl"] > 1e-3


def test_without_a_kl_term_nothing_is_kept(make_trainer: Make, scripted: Make) -> None:
    assert make_trainer(generator=scripted(), kl_reference="start").start is None


class CutOff(TrainerCallback):
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_a_run_that_resumes_has_the_start_that_it_had(
    make_trainer: Make, scripted: Make, trained_before: Make, z_of: Make, tmp_path: Path
) -> None:
    """Also where what it is started with is another adapter by then."""
    own = {**SETTINGS, "peft_config": False, "max_steps": 5, "save_strategy": "steps", "save_steps": 2}
    before = trained_before(KINDS["diagonal"])
    whole = make_trainer(before, generator=scripted(), output_dir=str(tmp_path / "whole"), **own)
    whole.train()
    cut = {**own, "output_dir": str(tmp_path / "cut")}
    with pytest.raises(KeyboardInterrupt):
        make_trainer(
            trained_before(KINDS["diagonal"]), generator=scripted(), callbacks=[CutOff()], **cut
        ).train()  # fmt: skip
    again = make_trainer(moved(trained_before(KINDS["diagonal"]), 2), generator=scripted(), **cut)
    again.train("auto")
    expected, found = z_of(whole), z_of(again)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "cut")
    # of before it was kept, and of another adapter
    (tmp_path / "cut" / "checkpoint-4" / FILE).rename(tmp_path / FILE)
    with pytest.raises(SVFError, match="holds no values of the run's start"):
        again.start.load(tmp_path / "cut" / "checkpoint-4")
    other = make_trainer(trained_before(KINDS["LoRA"]), generator=scripted(), **{**own, **SETTINGS})
    with pytest.raises(SVFError, match="is not of what is trained here"):
        other.start.load(tmp_path)
