"""What the trainer overrides of TRL and transformers is known, one by one, in the version that it was written for."""

import hashlib
import inspect

import pytest
import torch
import transformers
import trl
from trl import GRPOTrainer

from svf_rl.training.next_token import NextTokenTrainer
from svf_rl.training.trainer import SVFReinforceTrainer

# The digest of each overridden function's source. Where a new version of TRL or transformers changes one: read the
# change, decide what it means for ours, and only then put the new digest here.
OVERRIDDEN = {
    "__init__": "18f01b7a46c9544b",
    "_generate_and_score_completions": "1fa48922792dcd5c",
    "_prepare_inputs": "f824e7fb07147956",
    "_compute_loss": "80295546bbdbf6f7",
    "training_step": "9e18632f7dd8e8d8",
    "log": "1e7772819cc8cf09",
    "evaluate": "47001f3acc991bc4",
    "predict": "7220207e2dd42725",
    "_get_train_sampler": "36497afb4d311dc9",
    "_save_checkpoint": "ec91bde123649111",
    "_load_optimizer_and_scheduler": "5c1772becdfd7fdb",
    "train": "f2ab74639cb0528d",
    "_run_epoch": "ebe374933064ecd6",
    "_maybe_log_save_evaluate": "af101534f0f7b2d7",
    "_finalize_training": "8fdcb7005e2b2d18",
    "_get_grad_norm": "913ba6f52f074d10",
    "create_optimizer": "daff86cde6ccc56d",
    "_save_optimizer_and_scheduler": "c5ef974db69ab993",
    "_load_rng_state": "d5ebdfc0a0884c4b",
    "save_model": "ca8d2be9f60f9878",
    "_save": "bf720120f407bab3",
    "create_model_card": "4f8a407fd9fd3f6e",
    "init_hf_repo": "84dca1f3208c70f5",
    "push_to_hub": "2f408e30def5f98c",
    "_push_from_checkpoint": "b336b2f27274f0a5",
}


def _digest(function: object) -> str:
    return hashlib.sha256(inspect.getsource(inspect.unwrap(function)).encode()).hexdigest()[:16]


def _overridden(trainer: type, base: type) -> set[str]:
    return {name for name, value in vars(trainer).items() if inspect.isfunction(value) and hasattr(base, name)}


def test_each_override_says_why() -> None:
    for name in _overridden(SVFReinforceTrainer, GRPOTrainer) - {"__init__"}:
        assert getattr(SVFReinforceTrainer, name).__doc__, f"{name} overrides TRL's and does not say why"


def test_all_overrides_stand_in_one_class() -> None:
    assert SVFReinforceTrainer.__mro__[1] is GRPOTrainer
    assert _overridden(NextTokenTrainer, GRPOTrainer) == {"__init__"}


@pytest.mark.parametrize("name", sorted(OVERRIDDEN))
def test_what_is_overridden_has_not_changed(name: str) -> None:
    found = _digest(getattr(GRPOTrainer, name))
    assert found == OVERRIDDEN[name], (
        f"{name} differs in TRL {trl.__version__}, transformers {transformers.__version__}: compare it with the "
        f"override in svf_rl/training/trainer.py, then put {found!r} into OVERRIDDEN"
    )


def test_the_table_lists_every_override() -> None:
    assert _overridden(SVFReinforceTrainer, GRPOTrainer) == set(OVERRIDDEN)


def test_nothing_of_trls_objective_is_computed(make_trainer, scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its pass for old log-probabilities, with several steps a generation, nor a reference model."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("TRL's own pass")

    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", refuse)
    trainer = make_trainer(
        generator=scripted(logprobs=lambda prompt, completion: [-2.0] * len(completion)), use_vllm=True,
        num_iterations=2, beta=0.1, max_steps=4,
    )  # fmt: skip
    assert (trainer.beta, trainer.ref_model) == (trainer.args.beta, None)
    trainer.train()
    assert trainer.state.global_step == 4
    assert torch.isfinite(torch.tensor([line["kl"] for line in trainer.state.log_history if "kl" in line])).all()
