"""Bad input to `svf-rl eval`: one line, exit status 1, and no folder left behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import refused_command

from svf_rl.cli import main
from svf_rl.evaluation.arguments import EvaluationArguments
from svf_rl.evaluation.run import evaluate
from svf_rl.rewards import InfrastructureError, Verdict, verifier

BASIS = ["eval", "quickstart", "--backend", "transformers", "--limit", "4", "--tasks"]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused(arguments)`: the one line with which the command ends."""
    monkeypatch.chdir(tmp_path)

    return lambda *arguments: refused_command(capsys, *arguments, "--out", "new/out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["gsm9k"], "unknown task 'gsm9k': use one of"),
        (["quickstart:cooking"], "unknown quickstart skill 'cooking'"),
        (["gsm8k:math"], "only quickstart has skills"),
        (["quickstart,quickstart"], "named twice"),
        ([","], "name at least one task"),
        (["quickstart", "--limit", "0"], "--limit must be at least 1, not 0"),
        (["quickstart", "--samples", "4", "--k", "1,5"], "pass@5 needs at least 5 samples an item"),
        (["quickstart", "--samples", "4", "--temperature", "0"], "are all the same"),
        (["quickstart", "--temperature", "-1"], "--temperature must be 0"),
        (["quickstart", "--top-p", "0"], "--top-p must be above 0"),
        (["quickstart", "--reward", "bleu"], "unknown reward 'bleu'"),
        (["quickstart", "--reward", "{name: numeric, tolerence: 1}"], "has no argument 'tolerence'"),
        (["quickstart", "--reward", "{name: numeric, column: gold}"], "needs the column 'gold'"),
        (["quickstart", "--reward", "{name: ["], "not a valid YAML mapping"),
        (["quickstart", "--chat-template-kwargs", "[1]"], "not a valid YAML mapping"),
        (["quickstart", "--chat-template-kwargs", "{1: 2}"], "chat_template_kwargs: 1 is not a name"),
        (["quickstart", "--chat-template-kwargs", "{tokenize: true}"], "chat_template_kwargs must not hold tokenize"),
        (["quickstart", "--adapter", "missing"], "adapter missing is neither a local folder nor"),
        (["gsm8k", "--data-dir", "missing"], "missing"),
        (["gsm8k", "--data-path", "missing"], "missing"),
        (["columns"], "no default reward: give --reward"),
        (["columns", "--reward", "numeric"], "needs data_path"),
        (["columns", "--reward", "numeric", "--data-path", "missing.jsonl"], "missing.jsonl does not exist"),
    ],
)  # fmt: skip
def test_one_line(refused: Callable[..., str], options: list[str], message: str) -> None:
    assert message in refused(*BASIS, *options)


def test_a_folder_that_is_no_model(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no model in empty" in refused("eval", "empty", "--tasks", "quickstart")


def test_a_model_that_is_not_there(refused: Callable[..., str]) -> None:
    assert "model nobody/nothing is neither a local folder nor a model that can be downloaded" in refused(
        "eval", "nobody/nothing", "--tasks", "quickstart"
    )


def test_columns_and_answers_that_do_not_fit(refused: Callable[..., str], tmp_path: Path) -> None:
    def data(*rows: dict) -> list[str]:
        (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [*BASIS, "columns", "--data-path", "d.jsonl", "--answer-column", "gold", "--prompt-column", "q"]

    good = {"q": "1+1?", "gold": "2"}
    numeric = ["--reward", "numeric"]
    assert "has no column 'q'" in refused(*data({"x": "1+1?", "gold": "2"}), *numeric)
    assert "has no column 'gold'" in refused(*data({"q": "1+1?"}), *numeric)
    assert "no default reward" in refused(*data(good))
    assert "row 1" in refused(*data(good, {"q": "2+2?", "gold": ""}), *numeric)
    assert "row 1" in refused(*data(good, {"q": "2+2?", "gold": "no number"}), *numeric)
    assert "row 1, column 'q' must be text" in refused(*data(good, {"q": None, "gold": "2"}), *numeric)


def test_an_adapter_of_another_model_is_refused_before_anything_is_generated(
    refused: Callable[..., str], save_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    from svf_rl.quickstart import model_path

    adapter = save_adapter("svf", by=0.1)
    shutil.copytree(model_path(), tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    save_file({k: v * 1.5 for k, v in weights.items()}, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    line = refused("eval", "other", *BASIS[2:], "quickstart", "--adapter", str(adapter))
    assert "trained on other" in line


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_half_an_adapter(refused: Callable[..., str], svf_adapter: Path, tmp_path: Path, missing: str) -> None:
    shutil.copytree(svf_adapter, tmp_path / "half")
    (tmp_path / "half" / missing).unlink()
    assert "no adapter in half" in refused(*BASIS, "quickstart", "--adapter", "half")


def test_a_damaged_adapter_file(refused: Callable[..., str], svf_adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(svf_adapter, tmp_path / "torn")
    file = tmp_path / "torn" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert "damaged" in refused(*BASIS, "quickstart", "--adapter", "torn")


def test_a_prompt_beyond_the_context(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": "word " * 3000, "answer": "1"}) + "\n")
    assert "the model takes 2048" in refused(*BASIS, "columns", "--data-path", "d.jsonl", "--reward", "numeric")


@pytest.mark.parametrize(
    ("options", "what"),
    [(["--max-tokens", "7"], "there, 7 here"), (["--samples", "2"], "samples: 1 there, 2 here"),
     (["--reward", "exact_match"], "reward"), (["--system-prompt", "Be brief."], "prompt")],
)  # fmt: skip
def test_a_folder_of_another_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], what: str
) -> None:
    call = [*BASIS, "quickstart", "--out", str(tmp_path / "out")]
    assert main(call) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main([*call, *options]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert what in line
    assert "another --out" in line
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_an_out_that_holds_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "summary.json").write_text("{}")
    assert main([*BASIS, "quickstart", "--out", str(tmp_path)]) == 1
    assert "not of an evaluation" in capsys.readouterr().err
    assert (tmp_path / "summary.json").read_text() == "{}"


_broken: list[str] = []


@verifier("eval_test_fragile")
def fragile(completion: str, reference: object) -> Verdict:
    """Fails by itself for what `_broken` holds."""
    if "all" in _broken or ("some" in _broken and completion.endswith(("1", "2"))):
        raise InfrastructureError("no sandbox")
    return Verdict(True, completion, "fine")


def arguments(out: Path, **values: object) -> EvaluationArguments:
    return EvaluationArguments(
        "quickstart", ["quickstart:math"], reward="eval_test_fragile", limit=32, out=str(out), backend="transformers",
        **values,
    )  # fmt: skip


def test_checks_that_cannot_be_made_are_known_before_anything_is_generated(tmp_path: Path) -> None:
    _broken[:] = ["all"]
    with pytest.raises(ValueError, match="could not check 1 of 1 completions"):
        evaluate(arguments(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_failed_checks_above_a_share_stop_the_run_and_below_it_are_made_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _broken[:] = ["some"]
    with pytest.raises(ValueError, match="max_failed=0"):
        evaluate(arguments(out, max_failed=0.0))
    assert not out.exists()
    (result,) = evaluate(arguments(out, max_failed=1.0))
    assert 0 < result.not_scorable < 32
    assert result.accuracy.value == 1.0
    _broken[:] = []
    (again,) = evaluate(arguments(out, max_failed=0.0))
    assert again.not_scorable == 0
    assert again.reused == 32 - result.not_scorable


def test_answers_that_an_earlier_file_has_graded(refused: Callable[..., str], tmp_path: Path) -> None:
    reward, options = tmp_path / "mine.py", [*BASIS, "quickstart", "--reward", "mine.py:score"]
    reward.write_text("def score(completions, **_):\n    return [1.0] * len(completions)\n")
    main([*options, "--out", "new/out"])
    reward.write_text("def score(completions, **_):\n    return [0.0] * len(completions)\n")
    assert "made with other settings (reward.file_sha256" in refused(*options)
