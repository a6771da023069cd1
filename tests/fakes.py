"""What stands in for the real thing in tests of many rooms, and what they all wait for, read and compare."""

import base64
import json
import math
import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerBase

from svf_rl.errors import SVFError
from svf_rl.generation import Completion, Sampling, SyncReport
from svf_rl.generation.vllm.colocated import POLICY
from svf_rl.generation.weights import active_multipliers
from svf_rl.quickstart import model_path
from svf_rl.svf import SVFConfig

# ---- generators ------------------------------------------------------------------------------------------------------


class FakeGenerator:
    """
    A CompletionGenerator without a model. What it is asked for is recorded: `requests` (the sampling of each call),
    `samples` (prompt and tokens of each completion) and the number of `syncs`.

    Args:
        answer (`Callable`): gives the completions for prompts, sampling and seeds.
    """

    def __init__(self, answer: Callable[[Sequence[list[int]], Sampling, Sequence[int]], list[Completion]]):
        self._answer = answer
        self.samples: list[tuple[list[int], list[int]]] = []
        self.requests: list[Sampling] = []
        self.syncs, self.stale = 0, False

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int], progress: bool = False
    ) -> list[Completion]:
        self.requests.append(sampling)
        completions = self._answer(prompts, sampling, seeds)
        self.samples += [(list(prompt), c.token_ids) for prompt, c in zip(prompts, completions, strict=True)]
        return completions

    def sync(self, model: Any, everything: bool = False) -> SyncReport:
        self.syncs += 1
        return SyncReport()


class ScriptedGenerator(FakeGenerator):
    """Completions that the seed alone decides: 1 to `longest` tokens, of which most end with EOS."""

    def __init__(
        self, eos: int, longest: int = 6, logprobs: Callable[[list[int], list[int]], list[float]] | None = None
    ):
        super().__init__(self._draw)
        self.eos, self.longest, self._logprobs = eos, longest, logprobs

    def _draw(self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        result = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            draw = random.Random(seed)
            length = draw.randint(1, self.longest)
            tokens = [draw.randint(10, 400) for _ in range(length)]
            finished = length < self.longest
            if finished:
                tokens[-1] = self.eos
            logprobs = self._logprobs(list(prompt), tokens) if self._logprobs else None
            result.append(Completion(tokens, logprobs, finished))
        return result


class TableGenerator(FakeGenerator):
    """
    A generator with a table of adapters, as an engine that computes with factors has it. The first token of a
    completion says how near the multipliers of its adapter are to `target`, as [`nearness`] reads it, give or take some
    luck that the seed decides.

    Of each call it keeps the `prompts`, the `members` (numbers of their adapters) and the `seeds`.
    """

    def __init__(self, eos: int, target: float = 1.3, luck: float = 0.0):
        super().__init__(lambda *_: [])
        self.eos, self.target, self.luck = eos, target, luck
        self.table: dict[int, torch.Tensor] = {}
        self.adapters = self
        self.prompts: list[list[list[int]]] = []
        self.members: list[list[int]] = []
        self.seeds: list[list[int]] = []

    def put(self, number: int, multipliers: dict[str, torch.Tensor]) -> None:
        self.table[number] = torch.cat([m.detach().clone() for m in multipliers.values()])

    def sync(self, model: Any, everything: bool = False) -> SyncReport:
        self.put(POLICY, active_multipliers(model))
        return super().sync(model, everything)

    def generate(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        progress: bool = False,
        adapters: Sequence[int] | None = None,
    ) -> list[Completion]:
        members = list(adapters or [POLICY] * len(prompts))
        self.prompts.append(list(prompts))
        self.members.append(members)
        self.seeds.append(list(seeds))
        completions = []
        for prompt, number, seed in zip(prompts, members, seeds, strict=True):
            distance = (self.table[number] - self.target).square().mean().item()
            near = math.exp(-10 * distance) + self.luck * random.Random(f"{prompt} {seed}").uniform(-1, 1)
            completions.append(Completion([10 + round(400 * min(max(near, 0), 1)), self.eos], None, True))
        return completions


def nearness(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The reward of what [`TableGenerator`] writes, from 0 to 1."""
    return [(ids[0] - 10) / 400 for ids in completion_ids]


# ---- models and adapters ---------------------------------------------------------------------------------------------


SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip


def tiny_llama_config(tokenizer: PreTrainedTokenizerBase, **changes: Any) -> LlamaConfig:
    """Two layers for this tokenizer, with weights large enough for opinions of their own."""
    own = {
        "vocab_size": len(tokenizer), "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 128, "initializer_range": 0.2, "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    return LlamaConfig(**{**SIZES, **own, **changes})


def move(model: torch.nn.Module, seed: int, by: float, start: float | None = None) -> None:
    """Move every trained value by `by` times noise of the seed, from where it is or from `start`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                if start is not None:
                    parameter.fill_(start)
                parameter += by * torch.randn(parameter.shape, generator=generator).to(parameter)


def adapted_model(
    config: PeftConfig | None = None,
    seed: int = 0,
    by: float = 0.0,
    base: str | Path | None = None,
    dtype: torch.dtype | str = torch.float32,
) -> PeftModel:
    """The bundled model, or `base`, with an adapter (SVF on the MLPs) whose trained values have moved; the seed decides
    its random start too."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base or model_path(), dtype=dtype)
    model = get_peft_model(model, config or SVFConfig(target_modules="mlp", task_type="CAUSAL_LM"))
    move(model, seed, by)
    return model.eval()


def save_adapter(folder: Path, *arguments: Any, **options: Any) -> str:
    """Save the adapter of [`adapted_model`]; returns the folder."""
    adapted_model(*arguments, **options).save_pretrained(folder)
    return str(folder)


# ---- machines --------------------------------------------------------------------------------------------------------


BUSY_WAIT = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
"""Python that keeps a processor busy until it is ended, at the latest with the process that started it."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class FakeServer(BaseHTTPRequestHandler):
    """Answers requests as a subclass says, and prints nothing."""

    def answer(self, data: bytes, kind: str = "application/json") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class FakeHub(FakeServer):
    """The few answers of the Hugging Face Hub that an upload asks for; `uploads` has the files of each, by name."""

    uploads: ClassVar[list[dict[str, bytes]]] = []

    def do_GET(self) -> None:
        self.answer(b"{}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        answer: dict[str, Any] = {}
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            answer = {"url": f"http://{self.headers['Host']}/{name}"}
        elif "/preupload/" in self.path:
            answer["files"] = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]
        elif "/commit/" in self.path:
            values = [line["value"] for line in map(json.loads, body.splitlines()) if line["key"] == "file"]
            self.uploads.append({value["path"]: base64.b64decode(value["content"]) for value in values})
            answer = {"commitUrl": f"http://{self.headers['Host']}/me/name/commit/1", "commitOid": "1"}
        self.answer(json.dumps(answer).encode())


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address at which a server answers as the handler does."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


@contextmanager
def small_disk(folder: Path, size: str, lazy: bool = False) -> Iterator[Path]:
    """A file system of its own that can be filled, made at `folder`; the test is skipped where it cannot be mounted.
    Nobody may use it any more at the end, unless `lazy`."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a disk to fill cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", *(["--lazy"] if lazy else []), folder], check=not lazy)


# ---- what tests wait for, read and compare ---------------------------------------------------------------------------


def wait_until(condition: Callable[[], bool], seconds: float, every: float = 0.02) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} seconds"
        time.sleep(every)


def child_processes(pid: int) -> list[int]:
    """The processes that `pid` has started and that are there."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(child) for child in listed.split()]


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, less what measures seconds: it alone differs between two runs of one recipe."""
    timing = ("time/", "step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(timing)} for line in lines]


def refusal(call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """The one line of the `SVFError` with which the call ends."""
    with pytest.raises(SVFError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused_command(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which `svf-rl` refuses these arguments, after which the working directory is as it was but for
    what Python itself keeps of a user's module."""
    from svf_rl.cli import main

    def files() -> list[Path]:
        return sorted(path for path in Path().rglob("*") if "__pycache__" not in path.parts)

    before = files()
    assert main(list(arguments)) == 1
    printed = capsys.readouterr().err.splitlines()
    lines = [line for line in printed if line.startswith("error: ")]
    assert lines == printed[-1:]
    assert not any("Traceback" in line for line in printed)
    assert files() == before
    return lines[0]
