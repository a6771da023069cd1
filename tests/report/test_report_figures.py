"""The pictures: what they plot, what their axes say, and that they can be seen."""

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from matplotlib.text import Text

from svf_rl.report import figures
from svf_rl.report.groups import find_curve, group_by_recipe, smooth_curve
from svf_rl.report.multipliers import make_panels, shrink
from svf_rl.report.style import DPI, PALETTE, WIDTH, house_style, save
from svf_rl.report.write import compose
from svf_rl.runs.run_folder import Line, read_run


@pytest.fixture
def groups(write_run):
    def read(*runs: dict):
        return group_by_recipe([read_run(write_run(**run)) for run in runs])

    return read


def draw_reward(groups):
    return figures.draw_over_steps(groups, "reward", "mean reward")


def words(figure) -> set[str]:
    return {text.get_text() for text in figure.findobj(Text)}


def test_seeds_of_one_recipe_are_one_group_and_other_recipes_are_not(groups):
    a, b, c = groups(
        {"name": "math-seed0", "seed": 0},
        {"name": "math-seed1", "seed": 1, "output_dir": "elsewhere"},
        {"name": "faster", "learning_rate": 0.1},
        {"name": "now", "finished": False},
    )
    assert [run.name for run in a.runs] == ["math-seed0", "math-seed1"]
    assert a.label == "math (2 seeds)"
    assert [b.label, c.label] == ["faster", "now"]


def test_the_same_run_twice_is_not_two_seeds(groups):
    assert [len(group.runs) for group in groups({"name": "one"}, {"name": "copy"})] == [1, 1]


def test_a_curve_is_the_mean_of_the_seeds_where_all_have_been(groups):
    (group,) = groups({"name": "a", "seed": 0, "updates": 10}, {"name": "b", "seed": 1, "updates": 10})
    group.runs[1].updates[:] = group.runs[1].updates[:4]
    group.runs[1].updates[0].values["reward"] = 0.05
    reward = find_curve(group, "reward")
    assert reward.steps.tolist() == [1, 2, 3, 4]
    assert reward.mean == pytest.approx([0.03, 0.02, 0.03, 0.04])
    assert (reward.low[0], reward.high[0]) == (0.01, 0.05)
    assert find_curve(group, "of nobody") is None


def test_a_value_that_is_not_finite_is_left_out(groups):
    (group,) = groups({"name": "a"})
    group.runs[0].updates[2].values["kl"] = float("nan")
    assert find_curve(group, "kl").steps.tolist() == [1, 2, 4, 5, 6, 7, 8, 9, 10]


def test_the_moving_mean_is_centred_and_shorter_at_the_ends():
    values = np.array([1.0, 2, 3, 4, 10])
    assert smooth_curve(values, 1).tolist() == values.tolist()
    assert smooth_curve(values, 3) == pytest.approx([1.5, 2, 3, 17 / 3, 7])
    assert smooth_curve(values, 4) == pytest.approx([2, 2.5, 19 / 4, 17 / 3, 7])


def test_axes_are_labelled_with_units(groups):
    found = groups({"name": "a"}, {"name": "b", "learning_rate": 0.1})
    found[0].runs[0].updates[0].values["completions/clipped_ratio"] = 0.1
    labels = {
        "reward": ["mean reward"],
        "accuracy": ["validation accuracy"],
        "kl": ["KL from the base (nats a token)"],
        "lengths": ["tokens a completion", "cut off at the limit"],
    }
    _, pictures = compose([run for group in found for run in group.runs], [])
    for name, expected in labels.items():
        figure = pictures[name]
        assert [axes.get_ylabel() for axes in figure.axes] == expected
        assert figure.axes[-1].get_xlabel() == "step"
        assert {"a", "b"} <= words(figure)
        assert not any(axes.get_title() for axes in figure.axes)
    timing = figures.draw_timing([run for group in found for run in group.runs])
    assert timing.axes[0].get_xlabel() == "seconds a step (mean)"
    assert {"a", "b", "rollout", "weight sync", "1 s"} <= words(timing)


def test_a_group_has_one_colour_in_every_picture(groups):
    found = groups({"name": "a"}, {"name": "b", "learning_rate": 0.1})
    for line in found[0].runs[0].updates:
        del line.values["kl"]  # beta: 0
    (axes,) = figures.draw_over_steps(found, "kl", "KL").axes
    assert [line.get_color() for line in axes.lines] == [PALETTE[1]]


def test_the_base_is_a_line_and_the_best_checkpoint_a_ring(groups):
    figure = figures.draw_accuracy(groups({"name": "a"}))
    lines = {line.get_linestyle(): line for line in figure.axes[0].lines}
    assert lines["-"].get_ydata().tolist() == [0.505, 0.51]
    assert list(lines["--"].get_ydata()) == [0.5, 0.5]
    assert [list(lines["None"].get_xdata()), list(lines["None"].get_ydata())] == [[10], [0.51]]
    assert {"base model (test items)", "best checkpoint"} <= words(figure)


def test_a_curve_that_starts_at_the_base_model_needs_no_line_for_it(groups):
    found = groups({"name": "a"})
    found[0].runs[0].evaluations.insert(0, Line(0, {"eval_accuracy": 0.4}))
    figure = figures.draw_accuracy(found)
    (curve, _) = figure.axes[0].lines
    assert curve.get_xdata().tolist() == [0, 5, 10]
    assert curve.get_ydata().tolist() == [0.4, 0.505, 0.51]
    assert figure.axes[0].get_xlim()[0] < 0  # the dot is whole
    assert "base model (test items)" not in words(figure)


def test_what_is_drawn_is_named(groups):
    several = groups({"name": "a-seed0", "seed": 0, "updates": 300}, {"name": "a-seed1", "seed": 1, "updates": 300})
    assert "lowest to highest seed" in words(draw_reward(several))
    assert "each step (bold: mean)" in words(draw_reward(groups({"name": "b", "updates": 300})))
    assert "an evaluation" in words(figures.draw_accuracy(groups({"name": "c"})))
    assert not words(draw_reward(groups({"name": "d"}))) & {"lowest to highest seed", "d"}  # one plain line


def test_a_panel_with_nothing_to_see_is_left_out(groups):
    found = groups({"name": "a"})
    for line in found[0].runs[0].updates:
        line.values["completions/clipped_ratio"] = 0.0
    (axes,) = figures.draw_lengths(found).axes
    assert axes.get_xlabel() == "step (no completion was cut off at the limit)"


def test_many_points_are_faint_under_their_moving_mean(groups):
    few, many = groups({"name": "a", "updates": 60}), groups({"name": "b", "updates": 300})
    assert len(draw_reward(few).axes[0].lines) == 1
    faint, strong = draw_reward(many).axes[0].lines
    assert faint.get_alpha() < 0.5
    assert strong.get_ydata() == pytest.approx(smooth_curve(faint.get_ydata(), 15))


def test_what_nobody_logged_is_no_picture(groups):
    found = groups({"name": "now", "finished": False, "updates": 4})  # before its first evaluation
    assert figures.draw_accuracy(found) is None
    assert figures.draw_over_steps(found, "cross_entropy", "cross-entropy") is None


def test_next_token_training_shows_its_cross_entropy(groups):
    found = groups({"name": "a"})
    for line in found[0].runs[0].updates:
        del line.values["reward"]
        line.values["cross_entropy"] = 0.5
    _, pictures = compose(found[0].runs, [])
    assert "reward" not in pictures
    assert pictures["cross-entropy"].axes[0].get_ylabel() == "cross-entropy (nats a token)"


def test_one_panel_a_kind_of_module_with_the_layers_in_order():
    z = {f"model.layers.{layer}.mlp.{kind}": torch.full((4,), float(layer)) for layer in (10, 9) for kind in "ab"}
    z |= {f"model.layers.0.moe.experts.{expert}.w": torch.ones(2 + expert) for expert in (0, 1)}
    a, b, w = make_panels(z)
    assert [a.kind, b.kind, w.kind] == ["mlp.a", "mlp.b", "moe.experts.*.w"]
    assert a.layers == [9, 10]
    assert a.values.tolist() == [[9] * 4, [10] * 4]
    assert w.layers == [0, 0]
    assert np.isnan(w.values[0]).tolist() == [False, False, True]


def test_too_many_values_are_averaged_in_blocks_and_none_is_dropped():
    values = np.arange(1500, dtype=np.float32)[None].repeat(3, 0)
    grid, rows, columns = shrink(values)
    assert (grid.shape, rows, columns) == ((3, 500), 1, 3)
    assert grid[0, :2].tolist() == [1, 4]
    odd, _, _ = shrink(values[:, :1402])
    assert odd[0, -1] == 1401  # the last block is the rest alone
    assert shrink(np.ones((3, 96), dtype=np.float32))[0].shape == (3, 96)


def test_multipliers_are_coloured_around_one():
    found = make_panels({f"model.layers.{i}.mlp.up_proj": 1 + 0.1 * torch.linspace(-1, 1, 8) for i in range(3)})
    figure = figures.draw_multipliers(found, figures.find_color_range(found))
    axes, bar = figure.axes
    (image,) = axes.images
    assert image.norm.vcenter == 1
    assert image.norm.halfrange == pytest.approx(0.1, abs=0.001)
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("layer", "index of the singular value, largest first")
    assert axes.get_title(loc="left") == "mlp.up_proj"
    assert bar.get_ylabel() == "multiplier m"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1", "2"]


def test_an_untrained_adapter_has_colours_too():
    found = make_panels({"model.layers.0.mlp.up_proj": torch.ones(8)})
    assert figures.find_color_range(found) > 0


@pytest.mark.parametrize(("layers", "rank"), [(3, 96), (80, 1024)])
def test_pictures_have_a_sensible_size_and_are_not_blank(layers, rank, groups, tmp_path):
    found = make_panels(
        {f"model.layers.{i}.mlp.up": 1 + 0.1 * torch.sin(torch.arange(rank) + i) for i in range(layers)}
    )
    with house_style():
        made = [draw_reward(groups({"name": "a"})), figures.draw_multipliers(found, 0.1)]
    for figure in made:
        save(figure, tmp_path / "picture.png")
        pixels = imread(tmp_path / "picture.png")
        assert pixels.shape[1] == WIDTH * DPI
        assert 150 < pixels.shape[0] < 1000
        assert pixels[..., :3].std() > 0.05


def test_hostile_names_are_drawn_as_they_are(groups, tmp_path):
    found = groups({"name": "_a$b$"}, {"name": "x" * 80, "learning_rate": 0.1}, {"name": "\u5b9f", "beta": 0})
    with house_style():
        figure = draw_reward(found)
        save(figure, tmp_path / "picture.png")
    assert {" _a$b$", "?"} <= words(figure)
    assert max(map(len, words(figure))) < 40
