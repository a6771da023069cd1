"""Combinations of experts: the formula, PEFT's operation, trained weights, what is saved."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from svf_rl.errors import SVFError
from svf_rl.svf import SVFConfig, svf_layers
from svf_rl.svf.combine import assign_groups, check_weights, combine, even_weights, normalize

NAMES = ["a", "b", "c"]
# Each kind of expert that may be combined: masks are mixed, whatever they are made of.
KINDS = [{}, {"parameterization": "sigmoid"}, {"renormalize": True}]

Logits = Callable[[nn.Module], Tensor]
MakeLlama = Callable[..., PreTrainedModel]


@pytest.fixture
def experts(make_llama: MakeLlama, tmp_path: Path) -> dict[str, Path]:
    """Three saved experts, of a kind each, far from the base and from one another."""
    folders = {}
    for seed, (name, kind) in enumerate(zip(NAMES, KINDS, strict=True)):
        model = get_peft_model(make_llama(), SVFConfig(**kind))
        torch.manual_seed(seed)
        for layer in svf_layers(model).values():
            layer.svf_z["default"].weight.data += 0.5 * torch.randn_like(layer.svf_z["default"].weight)
        folders[name] = tmp_path / name
        model.save_pretrained(folders[name])
    return folders


@pytest.fixture
def pool(make_llama: MakeLlama, experts: dict[str, Path]) -> PeftModel:
    """One model with the three experts on it."""
    first, *rest = experts.items()
    model = PeftModel.from_pretrained(make_llama(), str(first[1]), adapter_name=first[0])
    for name, folder in rest:
        model.load_adapter(str(folder), name)
    return model.eval()


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


# ---- the formula ----------------------------------------------------------------------------------------------------


def test_mask_form_is_the_weighted_sum_and_deviation_form_starts_from_the_base() -> None:
    masks, alpha = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0.5, 2.0])
    assert combine(masks, alpha).tolist() == [1.0, 6.5]
    assert combine(masks, alpha, "deviation").tolist() == [1 + 0.5 - 2.0, 1 + 0.0 + 4.0]
    assert combine(masks, torch.zeros(2), "deviation").tolist() == [1.0, 1.0]


def test_both_forms_agree_where_the_weights_sum_to_one() -> None:
    masks, alpha = torch.rand(3, 5, dtype=torch.float64), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    torch.testing.assert_close(combine(masks, alpha), combine(masks, alpha, "deviation"))


def test_the_combination_is_differentiable_in_the_weights() -> None:
    masks = torch.rand(3, 5, dtype=torch.float64)
    alpha = torch.rand(3, dtype=torch.float64, requires_grad=True)
    for form in ("mask", "deviation"):
        assert torch.autograd.gradcheck(lambda a, form=form: combine(masks, normalize(a), form), (alpha,))


def test_weights_belong_to_all_matrices_to_a_layer_or_to_one_matrix() -> None:
    names = ["model.layers.0.mlp.up", "model.layers.0.mlp.down", "model.layers.2.mlp.up", "model.layers.2.mlp.down"]
    assert assign_groups(names, "global") == [0, 0, 0, 0]
    assert assign_groups(names, "layer") == [0, 0, 1, 1]
    assert assign_groups(names, "matrix") == [0, 1, 2, 3]
    with pytest.raises(SVFError, match="head is not in a numbered layer"):
        assign_groups(["head"], "layer")


def test_normalized_weights_sum_to_one() -> None:
    torch.testing.assert_close(
        normalize(torch.tensor([[1.0, 3.0], [2.0, 2.0]])), torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    )
    with pytest.raises(SVFError, match="sum to 0"):
        normalize(torch.tensor([1.0, -1.0]))
    assert even_weights(4, 2).tolist() == [[0.25] * 4] * 2


@pytest.mark.parametrize(
    ("weights", "normalized", "message"),
    [
        ([0.5], False, "1 weights for 2 experts"),
        ([0.5, float("nan")], False, "not a finite number"),
        ([0.5, 0.4], True, "must sum to 1, these sum to 0.9"),
        ([[0.5, 0.5]], True, r"shape \(1, 2\): this scope needs \(3, 2\)"),
        ([[0.5, 0.5], [0.5, 0.5], [1.0, 0.5]], True, "these sum to 1.5"),
        (["half", "half"], False, "must be numbers"),
    ],
)
def test_weights_that_do_not_suit_get_one_line(weights: list, normalized: bool, message: str) -> None:
    with pytest.raises(SVFError, match=message) as caught:
        check_weights(weights, experts=2, groups=3, normalized=normalized)
    assert "\n" not in str(caught.value)


# ---- as a PEFT operation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["mask", "deviation"])
def test_a_combination_is_its_masks_on_the_singular_values_and_equals_the_merged_model(
    pool: PeftModel, logits: Logits, form: str
) -> None:
    alpha = [0.4, 0.5, 0.3]
    pool.add_weighted_adapter(NAMES, alpha, "mix", form=form)
    for layer in svf_layers(pool).values():
        masks = torch.stack([layer.multiplier(name) for name in NAMES])
        torch.testing.assert_close(layer.multiplier("mix"), combine(masks, torch.tensor(alpha), form))
    pool.set_adapter("mix")
    applied = logits(pool)
    merged = logits(pool.merge_and_unload(adapter_names=["mix"]))
    assert (applied - merged).abs().max() < 1e-4


def test_one_expert_with_weight_one_is_that_expert(pool: PeftModel, logits: Logits) -> None:
    for index, name in enumerate(NAMES):
        pool.add_weighted_adapter(NAMES, torch.eye(3)[index], "mix")
        pool.set_adapter("mix")
        mixed = logits(pool)
        pool.set_adapter(name)
        torch.testing.assert_close(mixed, logits(pool))


def test_no_deviation_at_all_is_the_base_model(pool: PeftModel, make_llama: MakeLlama, logits: Logits) -> None:
    pool.add_weighted_adapter(NAMES, [0.0, 0.0, 0.0], "mix", form="deviation")
    pool.set_adapter("mix")
    merged = pool.merge_and_unload(adapter_names=["mix"])
    assert torch.equal(logits(merged), logits(make_llama()))


def test_weights_may_differ_by_layer(pool: PeftModel) -> None:
    alpha = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    pool.add_weighted_adapter(NAMES, alpha, "mix", scope="layer")
    for path, layer in svf_layers(pool).items():
        torch.testing.assert_close(layer.multiplier("mix"), layer.multiplier("a" if ".0." in path else "b"))


def test_a_combination_is_saved_and_loaded_like_any_adapter(
    pool: PeftModel, make_llama: MakeLlama, logits: Logits, tmp_path: Path
) -> None:
    pool.add_weighted_adapter(NAMES, [0.2, 0.3, 0.5], "mix", normalized=True)
    pool.set_adapter("mix")
    pool.save_pretrained(tmp_path / "saved", selected_adapters=["mix"])
    record = json.loads((tmp_path / "saved/mix/adapter_config.json").read_text())["combination"]
    assert record["experts"] == NAMES
    assert record["alpha"] == [pytest.approx([0.2, 0.3, 0.5])]
    loaded = PeftModel.from_pretrained(make_llama(), str(tmp_path / "saved/mix"))
    assert torch.equal(logits(loaded), logits(pool))


def test_experts_on_a_base_that_differs_by_rounding_are_combined(
    experts: dict[str, Path], make_llama: MakeLlama, logits: Logits, tmp_path: Path
) -> None:
    base = make_llama()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter *= 1 + 1e-6
    with pytest.warns(UserWarning, match="up to rounding"):
        pool = PeftModel.from_pretrained(copy.deepcopy(base), str(experts["a"]), adapter_name="a")
    with pytest.warns(UserWarning, match="up to rounding"):
        pool.load_adapter(str(experts["b"]), "b")
    pool.add_weighted_adapter(["a", "b"], [0.4, 0.6], "mix")
    pool.add_combination_adapter(["a", "b"], "trained")
    for layer in svf_layers(pool).values():
        masks = torch.stack([layer.multiplier("a"), layer.multiplier("b")])
        torch.testing.assert_close(layer.multiplier("mix"), combine(masks, torch.tensor([0.4, 0.6])))
    pool.set_adapter("mix")
    pool.save_pretrained(tmp_path / "saved", selected_adapters=["mix"])
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "saved/mix"))
    assert torch.equal(logits(loaded.eval()), logits(pool.eval()))


def test_experts_cost_vectors_and_not_models(pool: PeftModel) -> None:
    """Two more experts and a combination: three vectors a matrix, beside the one copy of weights and factors."""
    size = sum(p.numel() for p in pool.parameters())
    pool.delete_adapter("b")
    pool.delete_adapter("c")
    vectors = sum(layer.svf_factors.s.numel() for layer in svf_layers(pool).values())
    assert size - sum(p.numel() for p in pool.parameters()) == 2 * vectors
    pool.add_weighted_adapter(["a"], [0.5], "mix")
    assert size - sum(p.numel() for p in pool.parameters()) == vectors


def test_a_combination_may_be_made_again_and_never_takes_the_place_of_an_expert(pool: PeftModel) -> None:
    pool.add_weighted_adapter(NAMES, [1.0, 0.0, 0.0], "mix")
    pool.add_weighted_adapter(NAMES, [0.0, 1.0, 0.0], "mix")
    for layer in svf_layers(pool).values():
        torch.testing.assert_close(layer.multiplier("mix"), layer.multiplier("b"))
    pool.set_adapter("mix")
    pool.merge_adapter()
    with pytest.warns(UserWarning, match="'mix' was merged"):
        pool.add_weighted_adapter(NAMES, [0.0, 0.0, 1.0], "mix")
    assert not any(layer.merged for layer in svf_layers(pool).values())
    with pytest.raises(SVFError, match="already has an adapter 'c'"):
        pool.add_weighted_adapter(["a", "b"], [0.5, 0.5], "c")


@pytest.mark.parametrize(
    ("adapters", "options", "message"),
    [
        ([], {}, "at least one adapter"),
        (["a", "poet"], {}, "there is no adapter 'poet'; the model has: a, b, c"),
        (["a", "b"], {"scope": "head"}, "must be one of global, layer, matrix"),
        (["a", "b"], {"form": "sum"}, "must be one of mask, deviation"),
        (["a", "b"], {"normalized": True}, "must sum to 1"),
    ],
)
def test_what_cannot_be_combined_leaves_the_model_as_it_was(
    pool: PeftModel, adapters: list[str], options: dict, message: str
) -> None:
    with pytest.raises(SVFError, match=message):
        pool.add_weighted_adapter(adapters, [0.4] * len(adapters), "mix", **options)
    assert list(pool.peft_config) == NAMES
    assert all("mix" not in layer.svf_z for layer in svf_layers(pool).values())


def test_experts_with_other_targets_are_refused(pool: PeftModel) -> None:
    pool.add_adapter("attention", SVFConfig(target_modules="attention"))
    with pytest.raises(SVFError, match="different targets"):
        pool.add_weighted_adapter(["a", "attention"], [0.5, 0.5], "mix")


def test_a_combination_of_other_targets_or_in_training_is_not_overwritten(pool: PeftModel) -> None:
    pool.add_adapter("attention", SVFConfig(target_modules="attention"))
    pool.add_weighted_adapter(["attention"], [1.0], "mix")
    with pytest.raises(SVFError, match="'mix' has other targets than 'a'"):
        pool.add_weighted_adapter(NAMES, [1.0, 0.0, 0.0], "mix")
    pool.add_combination_adapter(NAMES, "trained")
    with pytest.raises(SVFError, match="'trained' are being trained"):
        pool.add_weighted_adapter(NAMES, [1.0, 0.0, 0.0], "trained")


# ---- weights that are trained ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scope", "rows"), [("global", 1), ("layer", 2), ("matrix", 6)])
def test_only_the_weights_are_trained_and_they_start_at_the_mean(pool: PeftModel, scope: str, rows: int) -> None:
    pool.add_combination_adapter(NAMES, "default", scope=scope)
    pool.set_adapter("default")
    parameters = trained(pool)
    assert len(parameters) == rows
    for alpha in parameters.values():
        torch.testing.assert_close(alpha.data, torch.full((3,), 1 / 3))


@pytest.mark.parametrize("normalized", [False, True])
def test_training_moves_the_weights_and_what_is_saved_is_a_plain_adapter(
    pool: PeftModel, make_llama: MakeLlama, ids: Tensor, logits: Logits, tmp_path: Path, normalized: bool
) -> None:
    pool.add_combination_adapter(NAMES, "default", scope="layer", normalized=normalized)
    pool.set_adapter("default")
    for name in NAMES:
        pool.delete_adapter(name)
    optimizer = torch.optim.Adam(trained(pool).values(), lr=0.05)
    losses = []
    for _ in range(5):
        loss = pool(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    pool.save_pretrained(tmp_path / "saved")
    loaded = PeftModel.from_pretrained(make_llama(), str(tmp_path / "saved"))
    torch.testing.assert_close(logits(loaded), logits(pool))
    record = json.loads((tmp_path / "saved/adapter_config.json").read_text())["combination"]
    assert record["alpha"] != even_weights(3, 2).tolist()
    if normalized:
        assert [sum(row) for row in record["alpha"]] == pytest.approx([1.0, 1.0], abs=1e-5)


def test_training_goes_on_from_saved_weights(pool: PeftModel, logits: Logits, tmp_path: Path) -> None:
    pool.add_combination_adapter(NAMES, "default")
    pool.set_adapter("default")
    (alpha,) = trained(pool).values()
    alpha.data = torch.tensor([0.1, 0.7, 0.4])
    before = logits(pool)
    pool.save_pretrained(tmp_path / "saved", selected_adapters=["default"])
    alpha.data = torch.zeros(3)
    pool.load_adapter(str(tmp_path / "saved"), "default")
    assert alpha.tolist() == pytest.approx([0.1, 0.7, 0.4])
    assert torch.equal(logits(pool), before)


def test_weights_stay_fp32_whatever_the_model_is_cast_to(pool: PeftModel) -> None:
    pool.add_combination_adapter(NAMES, "default")
    pool.set_adapter("default")
    pool.to(torch.bfloat16)
    assert {p.dtype for p in trained(pool).values()} == {torch.float32}
    assert all(layer.svf_z["default"].masks.dtype == torch.float32 for layer in svf_layers(pool).values())


def test_pefts_fourth_argument_is_not_taken_for_the_scope(pool: PeftModel) -> None:
    pool.add_weighted_adapter(NAMES, [0.2, 0.3, 0.5], "mix", "linear")
    with pytest.raises(SVFError, match="combination_type 'svd'"):
        pool.add_weighted_adapter(NAMES, [0.2, 0.3, 0.5], "mix2", "svd")
