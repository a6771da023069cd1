"""What a server's worker makes of `z` is, to the bit, what the training process would have pushed."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fakes import move
from peft import PeftModel, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from svf_rl.errors import SVFError
from svf_rl.generation.server.served_weights import ServedWeights
from svf_rl.generation.server.z_update import Layout, describe_layout, has_only_svf, pack
from svf_rl.generation.weights import adapted_weights
from svf_rl.quickstart import model_path
from svf_rl.svf import SVFConfig
from svf_rl.svf.mask import Mask

Adapted = Callable[..., PeftModel]


class Worker(torch.nn.Module):
    """Stands for vLLM's module: a store of what was loaded, which can fail."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.loaded: dict[str, torch.Tensor] = {}
        self.fails_after: int | None = None

    def load_weights(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        for name, weight in weights:
            if self.fails_after == 0:
                raise RuntimeError("out of memory")
            self.fails_after = None if self.fails_after is None else self.fails_after - 1
            self.loaded[name] = weight


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def served(worker: Worker) -> ServedWeights:
    return ServedWeights(worker, str(model_path()), None, torch.float32)


def update(served: ServedWeights, model: PeftModel) -> str:
    layout = Layout.from_json(dataclasses.asdict(describe_layout(model)))
    served.set_up(layout)
    z = pack(model)
    served.update(layout.version(z), z)
    return layout.version(z)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": "mlp"},
        {"target_modules": "mlp+attention", "parameterization": "sigmoid", "renormalize": True},
        {"core": "top:7"},
        {"core": "projected:13"},
    ],
    ids=["direct", "sigmoid", "top", "projected"],
)
def test_rebuilt_weights_are_those_of_a_full_push_to_the_bit(
    served: ServedWeights, worker: Worker, adapted: Adapted, config: dict
) -> None:
    model = adapted(1, SVFConfig(task_type="CAUSAL_LM", **config))
    version = update(served, model)
    pushed = dict(adapted_weights(model))
    assert worker.loaded.keys() == pushed.keys()
    assert all(torch.equal(worker.loaded[name], weight) for name, weight in pushed.items())
    assert served.status()["version"] == version
    assert served.updates == 1


def test_several_active_adapters_add_up_as_they_do_in_the_model(
    served: ServedWeights, worker: Worker, adapted: Adapted
) -> None:
    model = adapted(1)
    model.add_adapter("second", SVFConfig(target_modules="mlp", init="random", init_std=0.1, task_type="CAUSAL_LM"))
    model.base_model.set_adapter(["default", "second"])
    update(served, model)
    assert all(torch.equal(worker.loaded[name], weight) for name, weight in adapted_weights(model))


def test_weights_stored_as_in_by_out(worker: Worker, tmp_path: Path) -> None:
    """GPT-2's `Conv1D`, whose files also lack the prefix of the module paths."""
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=50, n_positions=16)).eval()
    base.save_pretrained(tmp_path)
    model = get_peft_model(base, SVFConfig(target_modules="mlp", task_type="CAUSAL_LM"))
    move(model, 0, by=0.05)
    update(ServedWeights(worker, str(tmp_path), None, torch.float32), model)
    assert set(worker.loaded) == {f"transformer.h.0.mlp.{name}.weight" for name in ("c_fc", "c_proj")}
    assert all(torch.equal(worker.loaded[name], weight) for name, weight in adapted_weights(model))


def test_a_bfloat16_server(worker: Worker) -> None:
    base = LlamaForCausalLM.from_pretrained(model_path(), dtype=torch.bfloat16)
    model = get_peft_model(base, SVFConfig(task_type="CAUSAL_LM"))
    move(model, 0, by=0.05)
    update(ServedWeights(worker, str(model_path()), None, torch.bfloat16), model)
    assert all(torch.equal(worker.loaded[name], weight) for name, weight in adapted_weights(model))


def test_the_next_adapter_leaves_nothing_of_the_one_before(
    served: ServedWeights, worker: Worker, adapted: Adapted
) -> None:
    update(served, adapted(1, SVFConfig(target_modules="mlp", task_type="CAUSAL_LM")))
    changed = set(worker.loaded)
    model = adapted(2, SVFConfig(target_modules="attention", task_type="CAUSAL_LM"))
    worker.loaded.clear()
    update(served, model)
    base = {n.replace(".base_layer", ""): p for n, p in model.get_base_model().named_parameters()}
    assert changed < set(worker.loaded)
    assert all(torch.equal(worker.loaded[name], base[name]) for name in changed)


def test_the_same_version_again_is_no_work(served: ServedWeights, worker: Worker, adapted: Adapted) -> None:
    model = adapted(1)
    update(served, model)
    worker.fails_after = 0
    update(served, model)
    assert served.updates == 1


def test_an_update_that_fails_half_way_is_known_and_mended_by_the_next(
    served: ServedWeights, worker: Worker, adapted: Adapted
) -> None:
    model = adapted(1)
    update(served, model)
    move(model, 2, by=0.05)
    worker.fails_after = 4
    with pytest.raises(RuntimeError):
        update(served, model)
    assert served.status()["version"] is None
    worker.fails_after = None
    update(served, model)
    assert all(torch.equal(worker.loaded[name], weight) for name, weight in adapted_weights(model))


def test_what_is_not_the_update_that_was_sent_changes_nothing(
    served: ServedWeights, worker: Worker, adapted: Adapted
) -> None:
    model = adapted(1)
    version = update(served, model)
    z = pack(model)
    before = dict(worker.loaded)
    nan = b"\x00\x00\xc0\x7f" + z[4:]
    for wrong, message in ((z[:-4], "bytes"), (z[4:] + z[:4], "did not arrive"), (nan, "NaN")):
        with pytest.raises(SVFError, match=message):
            served.update("something else", wrong)
    assert worker.loaded == before
    assert served.version == version


def test_bad_layouts_are_refused_in_one_line(served: ServedWeights, adapted: Adapted, tmp_path: Path) -> None:
    layout = describe_layout(adapted(1))
    first = layout.matrices[0]
    other = dataclasses.replace(first, fingerprint="0" * 64)
    missing = dataclasses.replace(first, name="model.layers.99.mlp.up_proj.weight")
    for bad, message in (
        (dataclasses.replace(layout, cache=str(tmp_path / "elsewhere")), "does not see the factor cache"),
        (dataclasses.replace(layout, cache=str(tmp_path)), "no sound factors"),
        (dataclasses.replace(layout, dtype="bfloat16"), "--dtype bfloat16"),
        (dataclasses.replace(layout, matrices=(other,)), "differs from that of the trained model"),
        (dataclasses.replace(layout, matrices=(missing,)), "another model"),
    ):
        with pytest.raises(SVFError, match=message) as error:
            served.set_up(bad)
        assert "\n" not in str(error.value)
    assert served.status()["layout"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": -3}, "rank -3"),
        ({"rank": 0}, "rank 0"),
        ({"rank": True}, "rank True"),
        ({"rank": 5.0}, r"rank 5\.0"),
        ({"rank": 5}, "rank 5 for .*, which has 96"),
        ({"name": 7}, "not text"),
        ({"fingerprint": None}, "not text"),
        ({"transposed": "yes"}, "must be"),
        ({"masks": (Mask("cubic"),)}, "mask of no adapter"),
        ({"masks": (Mask("sigmoid", float("nan")),)}, "mask of no adapter"),
        ({"masks": (Mask("sigmoid", 0.5),)}, "mask of no adapter"),
        ({"masks": (Mask("direct", "2"),)}, "mask of no adapter"),
        ({"masks": (Mask("direct", 2.0, 1),)}, "mask of no adapter"),
    ],
)
def test_a_layout_that_no_model_has_is_refused_before_anything_is_kept(
    served: ServedWeights, adapted: Adapted, change: dict, message: str
) -> None:
    layout = describe_layout(adapted(1))
    first = dataclasses.replace(layout.matrices[0], **change)
    with pytest.raises(SVFError, match=message) as error:
        served.set_up(dataclasses.replace(layout, matrices=(first, *layout.matrices[1:])))
    assert "\n" not in str(error.value)
    with pytest.raises(SVFError, match="names a matrix twice"):
        served.set_up(dataclasses.replace(layout, matrices=(layout.matrices[0], *layout.matrices)))
    assert served.status()["layout"] is None


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e38, -1e38, 1e7])
def test_values_that_no_training_makes_are_refused_before_anything_is_applied(
    served: ServedWeights, worker: Worker, adapted: Adapted, value: float
) -> None:
    model = adapted(1)
    version = update(served, model)
    before, layout = dict(worker.loaded), describe_layout(model)
    z = pack(model)
    z = z[:40] + torch.tensor([value]).numpy().tobytes() + z[44:]
    with pytest.raises(SVFError, match="diverged"):
        served.update(layout.version(z), z)
    assert (worker.loaded, served.version) == (before, version)
    served.begin_push("model", "run")
    with pytest.raises(SVFError, match="diverged"):
        served.push("model.norm.weight", torch.full((96,), value))
    assert worker.loaded == before


def test_a_push_of_what_the_checkpoint_lacks_is_refused_and_the_next_update_is_as_ever(
    served: ServedWeights, worker: Worker, adapted: Adapted
) -> None:
    with pytest.raises(SVFError, match="no push was begun"):
        served.push("model.norm.weight", torch.ones(96))
    assert served.version == ""
    served.begin_push("model", "run")
    for name, weight in (("nosuch.weight", torch.ones(96)), ("model.norm.weight", torch.ones(95)), ("", torch.ones(1))):
        with pytest.raises(SVFError):
            served.push(name, weight)
    assert worker.loaded == {}
    model = adapted(1)
    assert update(served, model) == served.version
    with pytest.raises(SVFError, match="no push was begun"):  # the update ended it
        served.push("model.norm.weight", torch.ones(96))
    assert served.version is not None
    assert set(worker.loaded) == {name for name, _ in adapted_weights(model)}


def test_a_push_that_is_not_complete_has_no_name(served: ServedWeights, adapted: Adapted) -> None:
    weights = dict(adapted_weights(adapted(1)))
    served.begin_push("model", "run")
    for name, weight in list(weights.items())[:-1]:
        served.push(name, weight)
    with pytest.raises(SVFError, match=f"{len(weights) - 1} of {len(weights)} weights arrived"):
        served.commit("version", len(weights))
    assert served.version is None


def test_a_push_puts_back_what_another_run_changed_and_keeps_what_its_own_did(
    served: ServedWeights, worker: Worker, adapted: Adapted
) -> None:
    update(served, adapted(1, SVFConfig(target_modules="attention", task_type="CAUSAL_LM")))
    attention = set(worker.loaded)
    pushed = dict(adapted_weights(adapted(2, SVFConfig(target_modules="mlp", task_type="CAUSAL_LM"))))
    ones = torch.ones(96)

    def push(weights: dict[str, torch.Tensor]) -> None:
        worker.loaded.clear()
        served.begin_push("model", "run")
        for name, weight in weights.items():
            served.push(name, weight)
        served.commit("version", len(weights))

    push({**pushed, "model.norm.weight": ones})
    assert set(worker.loaded) == attention | set(pushed) | {"model.norm.weight"}
    push(pushed)
    assert set(worker.loaded) == set(pushed)
    worker.loaded.clear()
    update(served, adapted(1))
    assert "model.norm.weight" in worker.loaded
    assert not torch.equal(worker.loaded["model.norm.weight"], ones)


def test_z_is_all_that_an_update_holds(adapted: Adapted) -> None:
    model = adapted(1)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert len(pack(model)) == 4 * trained
    assert has_only_svf(model)
    for more in ({"modules_to_save": ["lm_head"]}, {"core": "band:1"}, {"core": "block:3"}, {"biases": True}):
        assert not has_only_svf(adapted(1, SVFConfig(task_type="CAUSAL_LM", **more)))
