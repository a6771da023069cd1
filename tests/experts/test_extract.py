"""The adapter that is nearest to a model which was trained in another way."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fakes import refusal
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

from svf_rl.experts.extract import Extracted, extract
from svf_rl.experts.merged import merge
from svf_rl.models.arguments import ModelArguments
from svf_rl.quickstart import model_path
from svf_rl.svf.config import LARGEST
from svf_rl.svf.decompose import Factors, thin_svd
from svf_rl.svf.nearest import nearest_multiplier

Make = Callable[..., Path]


def _saved_z(folder: Path) -> dict[str, torch.Tensor]:
    return {name: z for name, z in load_file(folder / "adapter_model.safetensors").items() if "svf_z" in name}


@pytest.mark.parametrize("targets", ["mlp", "mlp+attention"])
def test_a_merged_z_comes_back(
    targets: str, base: Path, make_expert: Make, loaded: Callable[..., nn.Module], logits, tmp_path: Path
) -> None:
    expert = make_expert("expert", target_modules=targets)
    merge(ModelArguments(str(base)), [str(expert)], tmp_path / "merged")
    found = extract(ModelArguments(str(base)), str(tmp_path / "merged"), tmp_path / "out", targets)
    theirs, back = _saved_z(expert), _saved_z(tmp_path / "out")
    assert theirs.keys() == back.keys()
    for name, z in theirs.items():
        torch.testing.assert_close(back[name], z, rtol=0, atol=1e-4)
    assert found.inside > 1 - 1e-6
    assert (found.outside, found.missing) == (0, [])
    # it is an adapter like any other
    torch.testing.assert_close(
        logits(loaded(base, tmp_path / "out")), logits(loaded(tmp_path / "merged")), rtol=0, atol=1e-4
    )


def _of_lora(base: Path, make_lora: Make, tmp_path: Path, **config: object) -> Extracted:
    merge(ModelArguments(str(base)), [str(make_lora("lora", **config))], tmp_path / "merged")
    return extract(ModelArguments(str(base)), str(tmp_path / "merged"), tmp_path / "out")


def test_of_a_merged_lora_it_says_what_share_of_the_change_a_z_can_hold(
    base: Path, make_lora: Make, loaded: Callable[..., nn.Module], tmp_path: Path
) -> None:
    """The share is that of the change's projections on the singular directions, and what is left is of no use to it."""
    found = _of_lora(base, make_lora, tmp_path)
    assert 0 < found.inside < 0.2
    before, after = loaded(base), loaded(tmp_path / "merged")
    projected = total = 0.0
    for name, weight in before.named_parameters():
        if "up_proj" in name:
            change = (after.get_parameter(name) - weight).double()
            u, _, vt = torch.linalg.svd(weight.double(), full_matrices=False)
            projected += ((u.T @ change) * vt).sum(1).square().sum().item()
            total += change.square().sum().item()
    assert found.inside == pytest.approx(projected / total, rel=1e-4)
    assert {matrix.path.rpartition(".")[2] for matrix in found.matrices if matrix.change} == {"up_proj"}
    assert "their z makes" in str(found)


def test_what_changed_elsewhere_is_counted(base: Path, make_lora: Make, tmp_path: Path) -> None:
    found = _of_lora(base, make_lora, tmp_path, target_modules=["up_proj", "q_proj"])
    assert found.outside > 0
    assert found.share < found.inside
    assert re.search(r"% of the change of all weights", str(found))


def test_an_untied_embedding_counts_as_another_change(make_base: Make, make_expert: Make, tmp_path: Path) -> None:
    base = make_base(tie_word_embeddings=True)
    expert = make_expert("expert", on=base, modules_to_save=["lm_head"])
    weights = load_file(expert / "adapter_model.safetensors")
    head = next(tensor for name, tensor in weights.items() if "lm_head" in name)
    merge(ModelArguments(str(base)), [str(expert)], tmp_path / "merged")
    found = extract(ModelArguments(str(base)), str(tmp_path / "merged"), tmp_path / "out")
    change = head - load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    assert found.outside == pytest.approx(change.square().sum().item(), rel=1e-5)
    assert found.missing == []


def test_experts_of_a_mixture_are_compared_as_they_are_stored(make_expert: Make, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    base = ModelArguments(str(tmp_path / "base"))
    expert = make_expert("expert", on=tmp_path / "base", target_modules="attention")
    merge(base, [str(expert)], tmp_path / "merged")
    found = extract(base, str(tmp_path / "merged"), tmp_path / "out", "attention")
    assert (found.outside, found.missing) == (0, [])
    assert found.inside > 1 - 1e-6


def test_an_unchanged_model_is_the_base(base: Path, tmp_path: Path) -> None:
    found = extract(ModelArguments(str(base)), str(base), tmp_path / "out")
    assert (found.inside, found.share) == (1.0, 1.0)
    assert all(torch.equal(z, torch.ones_like(z)) for z in _saved_z(tmp_path / "out").values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounded_factors_do_not_disturb_it(dtype: torch.dtype) -> None:
    """Stored in bf16 they are orthonormal up to 2⁻⁹ alone."""
    torch.manual_seed(0)
    factors = thin_svd(torch.randn(48, 32)).to(dtype)
    u, s, vt = (tensor.double() for tensor in (factors.U, factors.s, factors.Vt))
    m = 1 + 0.3 * torch.randn(32, dtype=torch.float64)
    found, share = nearest_multiplier(factors, (u * (s * (m - 1))) @ vt)
    torch.testing.assert_close(found, m, rtol=0, atol=1e-7)
    assert share == pytest.approx(1, abs=1e-9)


def test_singular_values_of_zero_tell_nothing_and_multipliers_stay_sound() -> None:
    torch.manual_seed(0)
    weight = torch.randn(16, 3) @ torch.randn(3, 12)
    factors = thin_svd(weight)
    found, _ = nearest_multiplier(factors, 1e6 * torch.randn(16, 12))
    assert torch.equal(found[3:], torch.ones(9, dtype=torch.float64))
    assert found.isfinite().all()
    tiny = Factors(factors.U[:, :3], torch.tensor([1.0, 1e-3, 1e-6]), factors.Vt[:3])
    assert nearest_multiplier(tiny, 1e6 * torch.randn(16, 12))[0].abs().max() <= LARGEST


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(lambda weight: weight.mul_(torch.nan), "not finite"), (lambda weight: weight.to(torch.int8), "quantised")],
    ids=["NaN", "int8"],
)
@pytest.mark.parametrize("name", ["up_proj", "q_proj"], ids=["adapted", "another"])
def test_weights_that_are_none_are_refused(base: Path, tmp_path: Path, spoil, said: str, name: str) -> None:
    tuned = shutil.copytree(base, tmp_path / "tuned")
    weights = load_file(tuned / "model.safetensors")
    key = next(key for key in weights if name in key)
    save_file({**weights, key: spoil(weights[key])}, tuned / "model.safetensors", {"format": "pt"})
    assert said in refusal(extract, ModelArguments(str(base)), str(tuned), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_input_is_one_line_and_leaves_nothing(
    base: Path, make_base: Make, make_expert: Make, tmp_path: Path
) -> None:
    other = make_base(intermediate_size=40)
    model, out = ModelArguments(str(base)), tmp_path / "out"
    for tuned, targets, said in (
        (str(other), "mlp", "in the tuned model and"),
        (str(make_expert("expert")), "mlp", "model.safetensors"),
        (str(tmp_path / "none"), "mlp", "none"),
        (str(base), "nothing", "match no"),
    ):
        assert said in refusal(lambda: extract(model, tuned, out, targets))  # noqa: B023
        assert not out.exists()
