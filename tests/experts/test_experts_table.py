"""`svf-rl experts`: what a folder says about its adapter, without the base model."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from peft import LoraConfig  # noqa: F401  (PEFT's own methods are known)

from svf_rl.errors import SVFError
from svf_rl.experts.table import experts_table
from svf_rl.svf.expert import read_expert


def test_a_trained_expert_shows_its_base_task_accuracy_and_size(make_expert, write_summary):
    folder = make_expert("sums")
    write_summary(folder)
    row = experts_table([str(folder)]).rows[0]
    assert (row.name, row.kind, row.task) == ("sums", "SVF", "quickstart:math")
    assert (row.base_accuracy, row.accuracy, row.items) == (0.5, 0.75, 100)
    assert row.interval == pytest.approx((0.657, 0.825), abs=1e-3)
    assert row.bytes == (folder / "adapter_model.safetensors").stat().st_size
    assert row.values == 2 * (32 + 32 + 32)  # gate, up and down of two layers, min(32, 48) values each


def test_the_bundled_model_is_called_quickstart_and_no_path_is_shown(make_expert, write_summary, tmp_path):
    from svf_rl.quickstart import model_path

    bundled, other = make_expert("bundled", on=model_path(), dtype="float32"), make_expert("other")
    table = experts_table([str(bundled), str(other)])
    assert [row.base_model for row in table.rows] == ["quickstart", "small"]
    assert str(tmp_path) not in str(table) + json.dumps(asdict(table))


def test_an_adapter_without_a_run_shows_unknown(make_expert):
    table = experts_table([str(make_expert("published"))])
    assert table.rows[0].task is None
    assert str(table).splitlines()[2].count("unknown") == 3  # task, before, after


def test_statistics_are_those_of_the_multipliers_by_kind_of_module(make_expert):
    folder = make_expert("sigmoid", parameterization="sigmoid")
    modules = experts_table([str(folder)]).rows[0].modules
    assert set(modules) == {"gate_proj", "up_proj", "down_proj"}
    z = read_expert(folder).z
    m = torch.cat([2 * torch.sigmoid(value) for path, value in z.items() if path.endswith("up_proj")])
    up = modules["up_proj"]
    found = (up.mean, up.std, up.min, up.max, up.matrices)
    expected = (m.mean(), m.std(correction=0), m.min(), m.max(), 2)
    assert found == pytest.approx([float(value) for value in expected], abs=1e-6)


def test_a_renormalized_expert_needs_the_singular_values(make_expert, loaded, base, monkeypatch, tmp_path):
    folder = make_expert("even", renormalize=True)
    layer = loaded(base, folder).get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    from svf_rl.svf.checkpoint import decompose_checkpoint

    decompose_checkpoint(str(base), progress=False)
    row = experts_table([str(folder)]).rows[0]
    assert row.note is None
    assert row.modules["up_proj"].max >= layer.multiplier("default").max().item() - 1e-6
    monkeypatch.setenv("SVF_RL_CACHE", str(tmp_path / "empty"))
    elsewhere = experts_table([str(folder)]).rows[0]
    assert "before its renormalisation" in elsewhere.note
    assert elsewhere.modules["up_proj"].mean != row.modules["up_proj"].mean


def test_similarity_is_the_cosine_of_what_the_experts_change(make_expert):
    paths = [make_expert("a", seed=1), make_expert("twice_a", seed=1, size=0.4), make_expert("b", seed=2)]
    paths.append(make_expert("nothing", size=0))
    group = experts_table([str(path) for path in paths]).similarity[0]
    assert group.names == ["a", "twice_a", "b", "nothing"]
    d = [torch.cat([z - 1 for z in read_expert(path).z.values()]).double() for path in paths[:3]]
    expected = (d[0] @ d[2] / (d[0].norm() * d[2].norm())).item()
    assert group.cosine[0][1] == pytest.approx(1, abs=1e-6)
    assert group.cosine[0][2] == pytest.approx(expected, abs=1e-9)
    assert group.cosine[2][0] == group.cosine[0][2]
    assert abs(expected) < 0.5
    assert group.cosine[3] == [None] * 4


def test_experts_of_other_bases_or_targets_are_compared_apart(make_expert, make_base):
    other = make_base(seed=5)
    paths = [make_expert("a", seed=1), make_expert("b", seed=2), make_expert("c", on=other)]
    paths += [make_expert("d", on=other, seed=4), make_expert("e", target_modules="attention")]
    table = experts_table([str(path) for path in paths])
    assert [group.names for group in table.similarity] == [["a", "b"], ["c", "d"]]
    assert len(table.apart) == 2
    assert "base weights" in table.apart[0]
    assert "different targets" in table.apart[1]


def test_lora_gets_a_row_and_takes_no_part_in_the_rest(make_expert, make_lora):
    table = experts_table([str(make_lora("lora")), str(make_expert("svf"))])
    assert table.rows[0].kind == "LORA r=4"
    assert table.rows[0].values == 2 * 4 * (32 + 48)
    assert table.rows[0].modules == {}
    assert table.similarity == []


@pytest.mark.parametrize("count", [1, 10])
def test_from_one_expert_to_ten(count, make_expert):
    table = experts_table([str(make_expert(f"expert{i}", seed=i)) for i in range(count)])
    lines = str(table).splitlines()
    assert len(table.rows) == count
    assert max(map(len, lines)) < 140
    assert ("Cosine" in str(table)) == (count > 1)
    numbers = [s.mean for row in table.rows for s in row.modules.values()]
    assert all(math.isfinite(number) for number in numbers)


@pytest.mark.parametrize("broken", ["nothing", "config", "weights", "summary"])
def test_a_folder_without_a_sound_adapter_is_one_line(broken, make_expert):
    folder = make_expert("expert")
    if broken == "nothing":
        for path in folder.iterdir():
            path.unlink()
    elif broken == "weights":
        (folder / "adapter_model.safetensors").write_bytes(b"cut off")
    else:
        name = "adapter_config.json" if broken == "config" else "summary.json"
        (folder / name).write_text('{"peft_type": "SV')
    with pytest.raises(SVFError) as caught:
        experts_table([str(folder)])
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
