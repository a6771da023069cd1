"""`svf-rl report`: the folder it writes, and what it refuses to write over."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from made_runs import jsonl, metrics, write_adapter
from matplotlib.image import imread

from svf_rl.cli import main
from svf_rl.errors import SVFError
from svf_rl.markdown import escape_markdown, fence
from svf_rl.report.write import MARK, compose, write_report
from svf_rl.runs.run_folder import read_run
from svf_rl.storage.path_names import path_names


def row(text: str, name: str) -> list[str]:
    """The cells of the first table row that begins with `name`."""
    (line, *_) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def composed(*folders: Path) -> str:
    """The text of a report, without the time that it takes to draw its pictures."""
    names = path_names(folders)
    return compose([read_run(folder, name) for folder, name in zip(folders, names, strict=True)], [])[0]


def keep_completions(folder, step=10):
    prompts = [[{"role": "user", "content": f"What is {i} + 1?"}] for i in range(8)]
    answers = [[{"role": "assistant", "content": f"It is {i + 1} ```<b>"}] for i in range(8)]
    rewards = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, None]
    (folder / "completions").mkdir(exist_ok=True)
    frame = pd.DataFrame({"step": step, "prompt": prompts, "completion": answers, "numeric": rewards, "advantage": 0.0})
    frame["numeric/answer"] = ["2", "7", "7", *"45678"]
    frame.to_parquet(folder / "completions" / f"completions_{step:05d}.parquet")


def test_a_report_of_one_run_stands_in_its_folder(write_run):
    folder = write_run("math")
    file = write_report([folder])
    assert file == folder / "report" / "report.md"
    text = file.read_text()
    assert row(text, "math") == [
        "math", "quickstart:math", "svf", "32", "0", "10",
        "0.500 (0.431 to 0.569)", "0.750 (0.686 to 0.805)", "200",
    ]  # fmt: skip
    assert "12.2" in text  # seconds of training
    assert "from 0.900 to 1.100" in text
    assert "`log_completions: true`" in text
    assert not list(folder.glob(".*"))


def test_every_picture_is_linked_and_every_link_is_a_picture(write_run):
    folder = write_report([write_run("math"), write_run("other", learning_rate=0.1)], write_run("x") / "out").parent
    links = re.findall(r"!\[[^]]+\]\(([^)]+)\)", (folder / "report.md").read_text())
    assert sorted(links) == sorted(path.name for path in folder.glob("*.png"))
    assert {"accuracy.png", "reward.png", "kl.png", "lengths.png", "time.png", "multipliers-1.png"} <= set(links)
    for link in links:
        assert imread(folder / link)[..., :3].std() > 0.02


def test_seeds_are_summed_up_and_differences_listed(write_run):
    runs = [write_run(f"math-{seed}", seed=seed, after=0.7 + seed / 10) for seed in range(3)]
    other = write_run("slow", learning_rate=0.1)
    text = composed(*runs, other)
    assert row(text, "math (3 seeds)")[1:] == [
        "0, 1, 2", "0.800", "0.700 to 0.900", "+0.300"
    ]  # fmt: skip
    assert row(text, "learning_rate") == ["learning_rate", "default", "default", "default", "0.1"]
    assert "version of torch" not in text  # the same in all


def test_an_unfinished_run_is_reported_as_such(write_run):
    folder = write_run("now", finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')
    write_adapter(folder / "checkpoint-10")
    text = composed(folder)
    assert row(text, "now")[5:8] == ["10, unfinished", "0.500 (0.431 to 0.569)", "unfinished"]
    assert row(text, "now")[3] == "32"
    assert "From checkpoint-10." in text


def test_a_lora_run_has_no_picture_of_multipliers(write_run):
    folder = write_run("lora", adapter={"layers.0.up": torch.ones(7)}, config={"peft_type": "LORA"})
    text = composed(folder)
    assert "multipliers" not in text.lower()


def test_a_sigmoid_adapter_is_shown_as_multipliers(write_run):
    folder = write_run(
        "sigmoid",
        adapter={"model.layers.0.mlp.up": torch.zeros(4)},
        config={"parameterization": "sigmoid", "max_multiplier": 2.0},
    )
    assert "from 1.000 to 1.000" in composed(folder)


def test_a_diverged_run_is_reported_without_its_multipliers(write_run):
    folder = write_run("nan", adapter={"model.layers.0.mlp.up": torch.tensor([1.0, float("nan")])})
    lines = [{**line, **({"reward": float("nan")} if "reward" in line else {})} for line in metrics(10)]
    (folder / "metrics.jsonl").write_text(jsonl(lines))
    text = composed(folder)
    assert "No picture of nan" in text
    assert "reward.png" not in text


def test_samples_show_right_and_wrong_completions_of_the_last_step(write_run):
    folder = write_run("math")
    keep_completions(folder, step=5)
    keep_completions(folder, step=10)
    (folder / "completions" / "completions_00011.parquet").write_bytes(b"PAR1 torn")
    text = composed(folder)
    assert "Drawn for step 10: 3 right, 4 wrong, 1 not scorable." in text
    verdicts = re.findall(r"^\*\*(.+)\*\*; reward numeric: (\S+)$", text, re.MULTILINE)
    assert verdicts == [("right", "1")] * 3 + [("wrong", "0")] * 3 + [("not scorable", "none")]
    assert "````text\nIt is 1 ```<b>\n````" in text


def test_the_answers_that_were_paid_most_often_are_counted_over_all_steps(write_run):
    folder = write_run("math")
    keep_completions(folder, step=5)
    keep_completions(folder, step=10)
    rows = [line for line in composed(folder).splitlines() if line.startswith("| numeric |")]
    assert rows == ["| numeric | 7 | 4 of 6 | 0.667 | 2 |", "| numeric | 2 | 2 of 6 | 0.333 | 2 |"]


def test_an_evaluation_is_reported_beside_a_run(write_run, tmp_path):
    folder = tmp_path / "eval"
    (folder / "base").mkdir(parents=True)
    (folder / "settings.json").write_text(
        json.dumps({"kind": "svf-rl evaluation", "runs": {"base/gsm8k": {"task": "gsm8k"}}})
    )
    record = {"prompt": "1 + 1?", "completion": "3", "reference": "2", "extracted": "3", "reason": "3 is not 2"}
    record |= {"tokens": 1, "finished": True, "sample": 0, "score": 0.0, "infrastructure": False}
    lines = [{**record, "index": i, "correct": i > 0} for i in range(4)]
    (folder / "base" / "gsm8k.jsonl").write_text(jsonl(lines))
    text = write_report([write_run("math"), folder], tmp_path / "out").read_text()
    assert row(text, "gsm8k")[1:4] == ["base", "0.750 (0.301 to 0.954)", "4"]
    assert "This evaluation is unfinished." in text
    assert "**wrong**; expected: 2; taken for the answer: 3; because: 3 is not 2" in text


def test_a_report_is_replaced_as_a_whole(write_run, tmp_path):
    runs = [write_run("a"), write_run("b")]
    write_report(runs, tmp_path / "out")
    assert (tmp_path / "out" / "multipliers-2.png").exists()
    write_report(runs[:1], tmp_path / "out")
    assert not (tmp_path / "out" / "multipliers-2.png").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out"]


def test_nothing_but_a_report_is_replaced(write_run, tmp_path):
    run, out = write_run("a"), tmp_path / "out"
    out.mkdir()
    write_report([run], out)  # empty
    (out / "notes.txt").write_text("mine")
    with pytest.raises(SVFError, match="holds other files"):
        write_report([run], out)
    with pytest.raises(SVFError, match="holds other files"):
        write_report([run], run)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "cat.png").touch()
    with pytest.raises(SVFError, match="holds other files"):
        write_report([run], tmp_path / "pictures")
    with pytest.raises(SVFError, match="is a file"):
        write_report([run], out / "notes.txt")
    with pytest.raises(SVFError, match="not a folder that can be written") as raised:
        write_report([run], out / "notes.txt" / "below")
    assert "\n" not in str(raised.value)


def test_nothing_is_half_written_when_drawing_fails(write_run, tmp_path, monkeypatch):
    run, out = write_run("a"), tmp_path / "new" / "out"
    monkeypatch.setattr("svf_rl.report.write.save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(SVFError, match=r"cannot write .*/new/out: No space left"):
        write_report([run], out)
    assert not out.parent.exists()


def test_an_earlier_report_survives_a_failure(write_run, tmp_path, monkeypatch):
    run, out = write_run("a"), tmp_path / "out"
    write_report([run], out)
    before = (out / "report.md").read_text()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("svf_rl.report.write.save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_report([run], out)
    assert (out / "report.md").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "out"]


def test_a_folder_given_twice_counts_once(write_run):
    folder = write_run("a")
    text = write_report([folder, folder / ".." / "a"]).read_text()
    assert "# Report: a\n" in text


def test_text_of_models_stays_text():
    assert escape_markdown("a|b <img> `x` *y* max_steps _z_ \x1b[31m\n# no") == (
        r"a\|b \<img\> \`x\` \*y\* max_steps \_z\_ \\x1b\[31m \# no"
    )
    assert fence("a\n````\nb") == "`````text\na\n````\nb\n`````"
    assert fence("x" * 1000).count("x") == 801  # one in "text"
    assert "(200 more characters)" in fence("x" * 1000)
    assert fence("\udc80\x00") == "```text\n\\udc80\\x00\n```"


def test_a_real_run_is_reported(repository, tmp_path):
    small = ["--use_vllm", "false", "--per_device_train_batch_size", "8", "--max_completion_length", "24"]
    small += ["--validation_items", "8", "--test_items", "16", "--max_steps", "2", "--eval_steps", "1"]
    small += ["--save_steps", "1", "--log_completions", "true", "--report_to", "none"]
    recipe = str(repository / "recipes" / "quickstart.yaml")
    assert main(["train", recipe, *small, "--output_dir", str(tmp_path / "run")]) == 0
    text = write_report([tmp_path / "run"]).read_text()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert text.startswith(MARK)
    (line,) = [line for line in text.splitlines() if line.startswith("| run | quickstart:math | svf | 864 | 0 | 2 |")]
    assert f"| {summary['base_accuracy']:.3f} (" in line
    for name in ("accuracy", "reward", "kl", "lengths", "multipliers", "time"):
        assert (tmp_path / "run" / "report" / f"{name}.png").is_file()
    assert "Drawn for step 2: " in text
