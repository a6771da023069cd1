"""What every test needs before torch is imported, and the real data where it is at hand."""

import gc
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator

# One thread: results do not depend on the machine, and small matrices are slower on two.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

_caches = tempfile.TemporaryDirectory(prefix="svf_rl_caches_")
os.environ["SVF_RL_CACHE"] = f"{_caches.name}/factors"
# DeepSpeed builds its extension once, here: in the user's cache the lock of a build that was killed would have every
# later one wait for ever.
os.environ["TORCH_EXTENSIONS_DIR"] = f"{_caches.name}/extensions"

_MUCH = 6 * 2**30  # bytes of this process

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Ctrl-C reaches the programs that tests start, also where a shell started this one in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    gc.unfreeze()
    _caches.cleanup()


@pytest.fixture(scope="module", autouse=True)
def _freeze_imports() -> None:
    """What torch, vLLM and the rest have made at their import stays to the end: no collection goes through it again.
    Each training run asks for collections, which took a third of its time. Engines of earlier modules that were alive
    at a freeze would stay for good: when there are some, all is looked through again."""
    if psutil.Process().memory_info().rss > _MUCH:
        gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with GSM8K, ARC and the other benchmarks as plain files; tests that need it skip without it."""
    path = REPOSITORY.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the benchmark files are not beside the repository (../shared/data)")
    return path


@pytest.fixture(scope="session")
def bubblewrap() -> None:
    """For tests that run programs: skips without bubblewrap, as the library then refuses to."""
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")


@pytest.fixture(scope="session")
def even_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with a fourth attention head that adds nothing, so that two processes can share it."""
    return _save_even(tmp_path_factory.mktemp("even") / "model", "quickstart")


@pytest.fixture(scope="session")
def even_tool_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of the bundled model that can ask a calculator."""
    return _save_even(tmp_path_factory.mktemp("even") / "tool_model", "quickstart-tools")


def _save_even(folder: Path, name: str) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from svf_rl.quickstart import model_path

    model = AutoModelForCausalLM.from_pretrained(model_path(name))
    for layer in model.model.layers:
        attention, idle = layer.self_attn, model.config.head_dim
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight.data = torch.nn.functional.pad(projection.weight.data, (0, 0, 0, idle))
        attention.o_proj.weight.data = torch.nn.functional.pad(attention.o_proj.weight.data, (0, idle))
    model.config.num_attention_heads = model.config.num_key_value_heads = model.config.num_attention_heads + 1
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_path(name)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vllm_engine() -> "ColocatedVLLMGenerator":
    """One fp32 engine on the bundled model for all tests that need one: it holds whatever was synced last."""
    import torch

    from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator
    from svf_rl.quickstart import model_path

    return ColocatedVLLMGenerator(
        str(model_path()),
        dtype=torch.float32,
        seed=0,
        device="cpu",
        max_model_len=256,
        max_num_seqs=64,
        enforce_eager=True,
    )


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Token ids of 12 chat prompts of different lengths."""
    from transformers import AutoTokenizer

    from svf_rl.quickstart import make_rows, model_path

    tokenizer = AutoTokenizer.from_pretrained(model_path())
    rows = make_rows("math", "test", 6) + make_rows("choice", "test", 6)
    chats = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    return [tokenizer.apply_chat_template(c, add_generation_prompt=True)["input_ids"] for c in chats]
