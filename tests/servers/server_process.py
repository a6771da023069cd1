"""A vLLM server in a process of its own, and adapters for it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import torch

from svf_rl.generation import Completion


class Server:
    """A server's process. `command` follows `python -m`."""

    def __init__(self, command: Sequence[str], port: int, log: Path, **environment: str):
        self.url = f"http://127.0.0.1:{port}"
        self._command, self._environment, self.log = command, environment, log
        self.start()

    def start(self) -> None:
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self._command],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._environment},
                start_new_session=True,
            )

    def wait(self, seconds: float = 540) -> "Server":
        """Returns when it is up; starts it when it was killed."""
        if self.process.poll() == -signal.SIGKILL:
            self.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return self
            except httpx.TransportError:
                time.sleep(0.5)
        raise TimeoutError(self.log.read_text()[-3000:])

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@torch.no_grad()
def wrong_tokens(model: torch.nn.Module, prompts: list[list[int]], completions: list[Completion]) -> tuple[int, int]:
    """How many greedy tokens `model` would not have chosen though it was no near-tie, and how many near-ties there
    were."""
    wrong = ties = 0
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = torch.tensor([prompt + completion.token_ids])
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
        best, second = logits.topk(2, dim=1).values.T
        clear = best - second > 1e-3 * logits.abs().max(1).values
        wrong += int((logits.argmax(1) != ids[0, len(prompt) :])[clear].sum())
        ties += int((~clear).sum())
    return wrong, ties
