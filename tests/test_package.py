"""The wheel and the source archive: what they hold, and that it works without the checkout."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from svf_rl.cli import main
from svf_rl.errors import SVFError
from svf_rl.storage.bundled import BUNDLED, bundled_files, find_accelerate_config, find_recipe

pytest.importorskip("setuptools", minversion="77")

FOLDERS = ("recipes", "accelerate_configs", "slurm")
# as after `pip install` without extras: what asks whether these packages are there is told no
COMMANDS = """
import importlib, pkgutil, sys

class Without:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in ("vllm", "deepspeed") else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
import svf_rl

print("", *svf_rl.__path__, sep="\\n")
for module in pkgutil.walk_packages(svf_rl.__path__, "svf_rl."):
    # programs of their own, what vLLM loads into its processes, and classes made of its own
    others = ("__main__", "worker_extension", "server.versions", "factored.linear", "factored.loader", "vllm.resolver")
    others += ("endpoint.app", "endpoint.metrics", "endpoint.mixtures", "endpoint.engine", "server.transfer_engine")
    if "boxed" not in module.name and not module.name.endswith(others):
        importlib.import_module(module.name)

from svf_rl.cli import main
from svf_rl.launch import slurm_processes

assert main(["recipes"]) == 0
assert main(["plan", "quickstart", "--gpus", "8", "--gpu-memory", "80GB", "--per_device_train_batch_size", "8"]) == 0
assert main(["plan", "quickstart", "--slurm"]) == 0
assert main(["train", "quickstart", "--dry-run"]) == 0
assert main(["train", "recipes/quickstart.yaml", "--dry-run"]) == 0
assert main(["reproduce", "--dry-run"]) == 0
assert main(["serve", "quickstart"]) == 1
assert slurm_processes.main(["--nodes", "2", "--gpus", "0"]) == 0
assert "vllm" not in sys.modules and "deepspeed" not in sys.modules
"""


@pytest.fixture(scope="module")
def checkout(repository: Path) -> list[str]:
    """The files that git tracks."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.split("\0") if name and (repository / name).is_file()]


@pytest.fixture(scope="module")
def archives(repository: Path, checkout: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source archive of the checkout, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("package")
    for name in checkout:
        (folder / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "checkout" / name).write_bytes((repository / name).read_bytes())

    def build(kind: str, source: Path) -> Path:
        code = f"import sys, setuptools.build_meta as backend; backend.build_{kind}(sys.argv[1])"
        done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=source, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (built,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
        return built

    source = build("sdist", folder / "checkout")
    with tarfile.open(source) as archive:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # from Python 3.11.4 on
        archive.extractall(folder, **safely)
    return source, build("wheel", folder / source.name.removesuffix(".tar.gz"))


@pytest.fixture(scope="module")
def installed(archives: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as a folder of `sys.path`."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(archives[1]) as wheel:
        wheel.extractall(folder)
    return folder


def test_the_source_archive_holds_the_checkout(archives: tuple[Path, Path], checkout: list[str]) -> None:
    with tarfile.open(archives[0]) as archive:
        there = {name.partition("/")[2] for name in archive.getnames()}
    assert set(checkout) - there == set()


def test_the_wheel_holds_the_package_and_what_comes_with_it(
    repository: Path, archives: tuple[Path, Path], checkout: list[str]
) -> None:
    wanted = {name: name for name in checkout if name.startswith("svf_rl/")}
    wanted |= {f"svf_rl/bundled/{name}": name for name in checkout if name.split("/")[0] in FOLDERS}
    assert "svf_rl/py.typed" in wanted
    with zipfile.ZipFile(archives[1]) as wheel:
        own = {name for name in wheel.namelist() if ".dist-info/" not in name}
        assert own == wanted.keys()
        assert [name for name in own if wheel.read(name) != (repository / wanted[name]).read_bytes()] == []
        (licence,) = [name for name in wheel.namelist() if name.endswith(".dist-info/licenses/LICENSE")]
        assert wheel.read(licence) == (repository / "LICENSE").read_bytes()
        (entries,) = [name for name in wheel.namelist() if name.endswith("/entry_points.txt")]
        assert "svf-rl = svf_rl.cli:main" in wheel.read(entries).decode()


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_folder_without_vllm_and_deepspeed(installed: Path, tmp_path: Path) -> None:
    script = tmp_path / "commands.py"
    script.write_text(COMMANDS)
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, script], cwd=empty, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"\n{installed}/svf_rl\n" in done.stdout
    for name in [*bundled_files("recipes"), *bundled_files("accelerate_configs")]:
        assert f"\n{name} " in done.stdout
    assert f"{installed}/svf_rl/bundled/slurm/train.slurm" in done.stdout
    assert f"SVF_RL_CONFIG={installed}/svf_rl/bundled/accelerate_configs/cpu_ddp.yaml\n" in done.stdout
    assert f"SVF_RL_OUTPUT_DIR={empty}/runs/quickstart\n" in done.stdout
    assert done.stdout.count("updates:        30") == 2
    assert "14 training runs" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: vLLM is not installed: pip install 'svf-rl[cuda]'")
    assert list(empty.iterdir()) == []


def test_a_path_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bundled = BUNDLED / "recipes" / "quickstart.yaml"
    Path("quickstart").mkdir()  # of other things: a recipe is a file
    for name in ("quickstart", "quickstart.yaml", "recipes/quickstart.yaml"):
        assert find_recipe(name) == bundled
    assert find_recipe("reproduce/quickstart") == BUNDLED / "recipes" / "reproduce" / "quickstart.yaml"
    Path("quickstart.yaml").touch()
    assert find_recipe("quickstart.yaml") == Path("quickstart.yaml")
    assert find_recipe("quickstart") == bundled
    assert find_recipe("elsewhere/quickstart.yaml") == Path("elsewhere/quickstart.yaml")
    assert find_accelerate_config("zero3") == find_accelerate_config("accelerate_configs/zero3.yaml")


def test_a_name_that_nothing_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SVFError, match=r"recipe quikstart cannot be read: .* nearest bundled one is 'quickstart'"):
        find_recipe("quikstart")
    with pytest.raises(SVFError, match=r"accelerate config zero33 cannot be read: .* 'zero3'"):
        find_accelerate_config("zero33")


def test_a_copy_is_the_recipe_and_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "--copy", "llama3_math"]) == 0
    assert main(["recipes", "--copy", "llama3_math", "--to", "mine.yaml"]) == 0
    for name in ("llama3_math.yaml", "mine.yaml"):
        assert Path(name).read_bytes() == (BUNDLED / "recipes" / "llama3_math.yaml").read_bytes()
    Path("mine.yaml").write_text("mine")
    for arguments, says in [
        (["--copy", "llama3_math", "--to", "mine.yaml"], "mine.yaml exists already"),
        (["--copy", "llama3_math", "--to", "none/mine.yaml"], "No such file or directory"),
        (["--to", "mine.yaml"], "--to goes with --copy NAME"),
        (["--copy", "llama3_meth"], "'llama3_math'"),
        (["--copy", "nowhere/mine.yaml", "--to", "new.yaml"], "No such file or directory"),
    ]:
        capsys.readouterr()
        assert main(["recipes", *arguments]) == 1
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    assert Path("mine.yaml").read_text() == "mine"
    assert not Path("new.yaml").exists()


def test_a_copied_comparison_finds_its_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from svf_rl.reproduce.comparison import read_comparison

    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "--copy", "reproduce/quickstart", "--to", "compare.yaml"]) == 0
    assert read_comparison("compare.yaml").experts["math"].path == BUNDLED / "recipes" / "quickstart.yaml"
