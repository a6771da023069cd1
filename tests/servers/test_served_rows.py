"""What the worker of a server of rows makes of `z`: the row that a colocated engine has."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from fakes import move
from peft import PeftModel

from svf_rl.errors import SVFError
from svf_rl.generation.server.known_layouts import KnownLayouts
from svf_rl.generation.server.served_rows import ServedRows
from svf_rl.generation.server.z_update import describe_layout, pack
from svf_rl.generation.vllm.factored.adapters import AdapterRows
from svf_rl.generation.vllm.factored.table import MultiplierTable
from svf_rl.generation.weights import SharedWeights, active_multipliers
from svf_rl.svf import SVFConfig, svf_layers

Adapted = Callable[..., PeftModel]


@pytest.fixture
def rows(adapted: Adapted) -> AdapterRows:
    factors = SharedWeights.of(adapted()).factors
    return AdapterRows(MultiplierTable({path: held.s for path, held in factors.items()}, tokens=8, slots=2))


@pytest.fixture
def served(rows: AdapterRows, adapted: Adapted) -> ServedRows:
    layers = svf_layers(adapted())
    fingerprints = {path.removeprefix("base_model.model."): layer.weight_id for path, layer in layers.items()}
    return ServedRows(rows, KnownLayouts(rows.table, fingerprints, "model", torch.float32))


def put(served: ServedRows, model: PeftModel, number: int, unused: tuple[int, ...] = ()) -> None:
    layout, z = describe_layout(model), pack(model)
    served.set_up(layout)
    served.put(layout.digest, layout.version(z), z, number, unused)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": "mlp+attention"},
        {"target_modules": "mlp", "parameterization": "sigmoid", "renormalize": True},
    ],
    ids=["direct", "sigmoid"],
)
def test_the_row_is_that_of_the_model(served: ServedRows, rows: AdapterRows, adapted: Adapted, config: dict) -> None:
    """To the bit, but for masks that are computed in fp64 here and in fp32 there."""
    model = adapted(1, SVFConfig(task_type="CAUSAL_LM", **config))
    put(served, model, 7)
    theirs = rows.table.row_of(active_multipliers(model))
    if "parameterization" in config:
        torch.testing.assert_close(rows._values[7], theirs, rtol=1e-6, atol=0)
    else:
        assert torch.equal(rows._values[7], theirs)
    assert not torch.equal(rows._values[7], rows.table.values[0])


def test_several_active_adapters_add_up_as_they_do_in_the_model(
    served: ServedRows, rows: AdapterRows, adapted: Adapted
) -> None:
    """Also where one of them adapts a part, and a layer has none that is active."""
    model = adapted(1)
    model.add_adapter("second", SVFConfig(target_modules="mlp", init="random", init_std=0.1, task_type="CAUSAL_LM"))
    for number, names in ((1, ["default", "second"]), (2, ["second"])):
        model.base_model.set_adapter(names)
        put(served, model, number)
        torch.testing.assert_close(
            rows._values[number], rows.table.row_of(active_multipliers(model)), rtol=1e-6, atol=0
        )


def test_rows_come_and_go_by_their_numbers(served: ServedRows, adapted: Adapted) -> None:
    model = adapted(1)
    for number in range(1, 30):
        move(model, number, by=0.01)
        put(served, model, number, (number - 3,))
        assert served.status()["rows"] == min(number, 3)
    assert served.updates == 29


def test_the_layouts_of_runs_that_came_last_are_kept(served: ServedRows, adapted: Adapted) -> None:
    layout, z = describe_layout(adapted(1)), pack(adapted(1))
    layouts = [replace(layout, cache=str(number)) for number in range(20)]
    for one in layouts:
        served.set_up(one)
    assert served.status()["layouts"] == [one.digest for one in layouts[4:]]
    with pytest.raises(SVFError, match="does not have the layout"):
        served.put(layouts[0].digest, layouts[0].version(z), z, 1, ())
    served.put(layouts[4].digest, layouts[4].version(z), z, 1, ())


def test_bad_layouts_and_values_are_refused_in_one_line(served: ServedRows, adapted: Adapted) -> None:
    layout, z = describe_layout(adapted(1)), pack(adapted(1))
    first = layout.matrices[0]
    for change, message in (
        ({"dtype": "bfloat16"}, "--dtype bfloat16"),
        ({"matrices": (replace(first, fingerprint="0" * 64),)}, "differs from that of the trained model"),
        ({"matrices": (replace(first, name="model.layers.9.mlp.up_proj.weight"),)}, "does not serve .* in factors"),
        ({"matrices": (replace(first, rank=5),)}, "rank 5 for .*, which has 96"),
        ({"matrices": (first, first)}, "names a matrix twice"),
    ):
        with pytest.raises(SVFError, match=message) as error:
            served.set_up(replace(layout, **change))
        assert "\n" not in str(error.value)
    assert served.status()["layouts"] == []
    served.set_up(layout)
    for values, message in ((z[:-4], "bytes"), (z[4:] + z[:4], "did not arrive"), (b"\x00\x00\xc0\x7f" + z[4:], "NaN")):
        with pytest.raises(SVFError, match=message):
            served.put(layout.digest, layout.version(z), values, 1, ())
    for method in (served.update, served.begin_push, served.push, served.commit):
        with pytest.raises(SVFError, match="takes z alone"):
            method("version", 1)
    assert served.status() == {**served.status(), "rows": 0, "updates": 0, "version": ""}
