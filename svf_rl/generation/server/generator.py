"""CompletionGenerator from vLLM servers, on this machine or others."""

import sys
import time
import uuid
from collections.abc import Sequence
from typing import Any

from torch import nn

from svf_rl.errors import SVFError
from svf_rl.generation.processes import run_on_main_process
from svf_rl.generation.prompts import check_prompt_lengths, join_continuations
from svf_rl.generation.sampling import Completion, Sampling, SyncReport
from svf_rl.generation.server.connection import NoExtensionError, ServerConnection, ServerGoneError
from svf_rl.generation.server.requests import send_requests
from svf_rl.generation.server.transfer import TransferConnection
from svf_rl.generation.server.trl_push import TRLPushConnection
from svf_rl.generation.server.update import FullPush, Update, ZUpdate
from svf_rl.generation.server.z_update import has_only_svf
from svf_rl.generation.vllm.plugin import BACKEND
from svf_rl.generation.weights import refuse_other_trained_parameters
from svf_rl.waiting import say_waiting

_ATTEMPTS = 3


class VLLMServersGenerator:
    """
    One or several vLLM servers with this package's worker extension, which share the requests evenly.

    An update sends only `z`. Its weights have a name, the version. A server that computes with factors makes a row of
    it, whose version requests name: nobody waits, and runs do not disturb one another. A server of whole weights
    rebuilds them while requests wait; where an adapter is more than `z` (LoRA, modules trained in full), every changed
    weight is sent to it over HTTP. Its version is compared before each batch of requests, so that a restarted server is
    updated first, and after it, so that answers from another run's weights are discarded.

    With several processes, the main one updates the servers, and each generates its own share.

    Args:
        urls (`Sequence[str]`): Addresses such as `http://node7:8000`.
        dtype (`str`): Type of the trained model's weights, such as `"bfloat16"`.
        timeout (`float`, *optional*, defaults to 240.0): Seconds to wait for a server to be up, or up again.
        on_failure (`str`, *optional*, defaults to `"stop"`):
            When a server dies: `"stop"` waits for it and raises an error when it does not come back within `timeout`;
            `"leave_out"` continues with the others, and uses it again when it answers at a later sync.
        full_push (`bool`, *optional*, defaults to `False`):
            Send every adapted weight instead of `z`, for comparison.
        device (`str`, *optional*, defaults to `"cpu"`):
            Where the model trains. On `"cuda"` a server without the extension is accepted, and TRL's push sends it
            every weight.
        folder (`str`, *optional*):
            Where `z` is left for servers that get it by vLLM's own weight transfer; default: it is sent to them.

    Raises:
        SVFError: a server is not up within `timeout`, or cannot be used; one line says how to start it.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        dtype: str,
        timeout: float = 240.0,
        on_failure: str = "stop",
        full_push: bool = False,
        device: str = "cpu",
        folder: str | None = None,
    ):
        self._timeout, self._on_failure, self._full_push = timeout, on_failure, full_push
        self._folder = folder
        self._run = uuid.uuid4().hex
        self._urls, self._dtype, self._device = list(urls), dtype, device
        self._servers: list[ServerConnection] = []
        self._left_out: list[ServerConnection] = []
        self._connect()
        self._update: Update | None = None
        self.stale = True  # the servers' weights are not known before the first sync

    def _connect(self) -> None:
        end = time.monotonic() + self._timeout
        for url in self._urls:
            server = ServerConnection(url)
            try:
                with say_waiting(f"waiting for vLLM server {url}"):
                    while not server.is_up() and time.monotonic() < end:
                        time.sleep(1.0)
                self._servers.append(self._check(server))
            except ServerGoneError as error:
                if self._on_failure == "leave_out":
                    _warn(f"vLLM server {url} is left out: {error}")
                    self._left_out.append(server)
                    continue
                raise self._unreachable(url, error) from error
        if not self._servers:
            raise self._unreachable(", ".join(self._urls), "none of them")

    def _unreachable(self, urls: str, why: object) -> SVFError:
        return SVFError(
            f"no vLLM server answers at {urls} within {self._timeout:g} s ({why}): start one with "
            "svf-rl serve RECIPE, or correct vllm_server_base_url"
        )

    def _check(self, server: ServerConnection) -> ServerConnection:
        """`server`, or where it lacks the extension a connection for vLLM's weight transfer, by this package's engine
        or by TRL's push, where either is possible."""
        try:
            server.check(self._dtype)
        except NoExtensionError:
            if server.transfer() == BACKEND:
                server = TransferConnection(server.url, self._folder)
                server.check(self._dtype)
                return server
            if self._device != "cuda":
                raise
            server = TRLPushConnection(server.url, group_port=51216 + self._urls.index(server.url))
            server.check(self._dtype)
            _warn(f"the vLLM server {server.url} runs without the extension of this package: TRL sends it all weights")
        return server

    # ---- requests -----------------------------------------------------------------------------------------------

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int], progress: bool = False
    ) -> list[Completion]:
        limit = self.max_length
        check_prompt_lengths(prompts, limit)
        known = frozenset.intersection(*(server.request_keys for server in self._known))
        unknown = sorted(set(sampling.extra) - known)
        if unknown:
            raise SVFError(f"generation_kwargs holds {unknown[0]}, which the vLLM server does not know: remove it")
        bodies = [
            {
                **sampling.vllm_settings(seed),
                "prompt": prompt,
                # unlike the engine, the server refuses a request whose longest completion would not fit
                "max_tokens": min(sampling.max_tokens, limit - len(prompt)),
                "return_token_ids": True,
                **sampling.extra,
            }
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        completions = []
        for answer in self._send(bodies, progress):
            logprobs = (answer["logprobs"] or {}).get("token_logprobs")
            completions.append(Completion(answer["token_ids"], logprobs, answer["finish_reason"] == "stop"))
        return completions

    def loglikelihood(self, prompts: Sequence[list[int]], continuations: Sequence[list[int]]) -> list[list[float]]:
        # one token must be left to generate: vLLM refuses a request without one
        sequences = join_continuations(prompts, continuations, self.max_length - 1)
        asked = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        answers = self._send([{"prompt": sequence, **asked} for sequence in sequences], progress=False)
        scores = []
        for answer, ids in zip(answers, continuations, strict=True):
            steps = zip(answer["prompt_logprobs"][-len(ids) :], ids, strict=True)
            scores.append([step[str(token)]["logprob"] for step, token in steps])
        return scores

    @property
    def _known(self) -> list[ServerConnection]:
        """The servers whose settings are known; those of one that was left out from the start are not."""
        return [server for server in [*self._servers, *self._left_out] if server.max_model_len]

    @property
    def max_length(self) -> int:
        """Tokens of prompt and completion that the servers take."""
        return min(server.max_model_len for server in self._known)

    def _send(self, bodies: Sequence[dict[str, Any]], progress: bool) -> list[dict[str, Any]]:
        """The servers' answer to each request, in order."""
        update = self._update  # of all answers, whatever is synced meanwhile
        if update is None:
            raise RuntimeError("the servers' weights are not known: sync before generating")
        if not self._has_enough():
            self._take_back()
        answers: dict[int, dict[str, Any]] = {}
        for _ in range(_ATTEMPTS + len(self._servers)):
            waiting = [i for i in range(len(bodies)) if i not in answers]
            ready = self._ready_servers(update)
            shares = {server: waiting[place :: len(ready)] for place, server in enumerate(ready)}
            requests = {}
            for server, share in shares.items():
                named = {"model": update.version} if server.serves_rows else {}
                requests[server] = [{**bodies[i], **named} for i in share]
            for server, outcome in send_requests(requests, progress).items():
                try:
                    if isinstance(outcome, ServerGoneError):
                        raise outcome
                    if server.state() == ready[server]:
                        pairs = zip(shares[server], outcome, strict=True)
                        answers |= {i: answer for i, answer in pairs if answer is not None}
                except ServerGoneError as error:
                    self._failed(server, error)
            if len(answers) == len(bodies):
                return [answers[i] for i in range(len(bodies))]
        raise SVFError(
            "the vLLM servers fail repeatedly, or their weights change while they answer: read their logs, and do not "
            "let another run send its weights to the same server"
        )

    def _ready_servers(self, update: Update) -> dict[ServerConnection, tuple[Any, ...]]:
        """The servers that have the weights of `update`, with their state."""
        ready = {}
        for server in list(self._servers):
            try:
                if server not in self._known:  # another process uses it again
                    server.check(self._dtype)
                ready[server] = update.ensure(server)
                server.empty_cache()
            except ServerGoneError as error:
                self._failed(server, error)
        return ready

    # ---- weights ------------------------------------------------------------------------------------------------

    def sync(self, model: nn.Module, everything: bool = False) -> SyncReport:
        """Serve the weights of `model` from now on. The frozen weights are those of the servers' checkpoint: with `z`
        alone, `everything` sends nothing more."""
        refuse_other_trained_parameters(model)
        extended = all(server.takes_z for server in self._servers)
        z_alone = has_only_svf(model) and not self._full_push and extended
        if not z_alone:
            FullPush.check_servers(self._servers)
        # vLLM's loader needs all parts of a fused weight: of q, k and v none may be missing
        update: Update = ZUpdate(model) if z_alone else FullPush(model, everything or not extended, self._run)
        shared = run_on_main_process(lambda: self._update_servers(update), update.take_part)
        update.version, self._update, self.stale = shared["version"], update, False
        servers = {server.url: server for server in [*self._servers, *self._left_out]}
        self._servers = [servers.pop(url) for url in shared["servers"]]
        self._left_out = list(servers.values())
        return SyncReport(update.tensors, shared["bytes"])

    def _update_servers(self, update: Update) -> dict[str, Any]:
        """Update all servers, including those that were left out and are back."""
        self._take_back()
        outcomes = update.bring(self._servers)
        for server, outcome in outcomes.items():
            if isinstance(outcome, ServerGoneError):
                self._failed(server, outcome)
        sent = sum(outcome for outcome in outcomes.values() if isinstance(outcome, int))
        return {"version": update.version, "bytes": sent, "servers": [server.url for server in self._servers]}

    def _failed(self, server: ServerConnection, error: ServerGoneError) -> None:
        """Continue without `server`, or wait until it is up again; then it still needs an update."""
        if server not in self._servers:
            return
        self._servers.remove(server)
        self._left_out.append(server)
        if self._on_failure == "leave_out" and self._servers:
            _warn(f"vLLM server {server.url} is left out: {error}")
            return
        _warn(f"vLLM server {server.url} does not answer ({error}); waiting {self._timeout:g} s for it")
        with say_waiting(f"waiting for vLLM server {server.url}"):
            self._take_back()

    def _take_back(self) -> None:
        """Use the left-out servers that answer again. Where the run cannot continue without them, wait, and raise
        `SVFError` when they do not answer in time."""
        end = time.monotonic() + self._timeout
        while self._left_out:
            for server in list(self._left_out):
                if server.is_up():
                    try:
                        back = server if server in self._known else self._check(server)
                    except ServerGoneError:
                        continue
                    self._left_out.remove(server)
                    self._servers.append(back)
                    print(f"vLLM server {server.url} is back", file=sys.stderr, flush=True)
            if self._has_enough():
                return
            if time.monotonic() >= end:
                gone = ", ".join(server.url for server in self._left_out)
                raise SVFError(f"vLLM server {gone} does not answer any more: restart it and resume the run")
            time.sleep(1.0)

    def _has_enough(self) -> bool:
        return bool(self._servers) if self._on_failure == "leave_out" else not self._left_out


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
