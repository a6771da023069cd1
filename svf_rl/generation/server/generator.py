"""CompletionGenerator from vLLM servers, on this machine or others."""

import sys
import time
import uuid
from collections.abc import Sequence
from typing import Any

from torch import nn

from svf_rl.errors import SVFError
from svf_rl.generation.continuations import joined
from svf_rl.generation.processes import run_on_main_process
from svf_rl.generation.prompts import check_prompt_lengths
from svf_rl.generation.sampling import Completion, Sampling, SyncReport
from svf_rl.generation.server.connection import NoExtensionError, ServerConnection, ServerGoneError
from svf_rl.generation.server.requests import send_requests
from svf_rl.generation.server.trl_push import TRLPushConnection
from svf_rl.generation.server.update import FullPush, Held, Update, ZUpdate, held
from svf_rl.generation.server.z_update import is_svf_alone
from svf_rl.generation.weights import refuse_other_trained_parameters

_ATTEMPTS = 3


class VLLMServersGenerator:
    """
    One or several vLLM servers with this package's worker extension, which share the requests evenly.

    A server is brought up to date by `z` alone; only where an adapter is more than `z` (LoRA, modules trained in full)
    does every changed weight go over HTTP. What a server holds has a name, the version: it is compared before each
    batch of requests, so that a server that was restarted is brought up to date first, and after it, so that no answer
    counts that another run's weights gave. During an update requests wait.

    With several processes, the main one brings the servers up to date, and each generates its own share.

    Args:
        urls (`Sequence[str]`): Addresses such as `http://node7:8000`.
        dtype (`str`): Type of the trained model's weights, such as `"bfloat16"`.
        timeout (`float`, *optional*, defaults to 240.0): Seconds to wait for a server to be up, or up again.
        on_failure (`str`, *optional*, defaults to `"stop"`):
            When a server dies: `"stop"` waits for it and raises an error when it does not come back within `timeout`;
            `"leave_out"` goes on with the others, and takes it back when it answers at a later sync.
        full_push (`bool`, *optional*, defaults to `False`):
            Send every adapted weight instead of `z`: to compare with.
        device (`str`, *optional*, defaults to `"cpu"`):
            Where the model trains. On `"cuda"` a server without the extension is taken, and TRL's push brings it
            every weight; elsewhere there is none.

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
    ):
        self._timeout, self._on_failure, self._full_push = timeout, on_failure, full_push
        self._run = uuid.uuid4().hex
        self._urls, self._dtype, self._device = list(urls), dtype, device
        self._servers: list[ServerConnection] = []
        self._left_out: list[ServerConnection] = []
        self._connect()
        self._update: Update | None = None
        self.stale = True  # what the servers hold is not known before the first sync

    def _connect(self) -> None:
        end = time.monotonic() + self._timeout
        for url in self._urls:
            server = ServerConnection(url)
            try:
                while not server.is_up() and time.monotonic() < end:
                    time.sleep(1.0)
                self._servers.append(self._checked(server))
            except ServerGoneError as error:
                if self._on_failure == "leave_out":
                    print(f"warning: vLLM server {url} is left out: {error}", file=sys.stderr, flush=True)
                    self._left_out.append(server)
                    continue
                raise self._nobody(url, error) from error
        if not self._servers:
            raise self._nobody(", ".join(self._urls), "none of them")

    def _nobody(self, urls: str, why: object) -> SVFError:
        return SVFError(
            f"no vLLM server answers at {urls} within {self._timeout:g} s ({why}): start one with "
            "svf-rl serve RECIPE, or correct vllm_server_base_url"
        )

    def _checked(self, server: ServerConnection) -> ServerConnection:
        """`server`, or where it lacks the extension and TRL's push is possible, one for that."""
        try:
            server.check(self._dtype)
        except NoExtensionError:
            if self._device != "cuda":
                raise
            server = TRLPushConnection(server.url, group_port=51216 + self._urls.index(server.url))
            server.check(self._dtype)
            print(
                f"warning: the vLLM server {server.url} runs without the extension of this package: every update goes "
                "to it in full, by TRL's push",
                file=sys.stderr,
                flush=True,
            )
        return server

    # ---- requests -----------------------------------------------------------------------------------------------

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int], progress: bool = False
    ) -> list[Completion]:
        limit = self._max_model_len
        check_prompt_lengths(prompts, limit)
        known = frozenset.intersection(*(server.request_keys for server in self._known))
        unknown = sorted(set(sampling.extra) - known)
        if unknown:
            raise SVFError(f"generation_kwargs holds {unknown[0]}, which the vLLM server does not know: remove it")
        bodies = [_body(prompt, sampling, seed, limit) for prompt, seed in zip(prompts, seeds, strict=True)]
        return [_completion(answer) for answer in self._answers(bodies, progress)]

    def loglikelihood(self, prompts: Sequence[list[int]], continuations: Sequence[list[int]]) -> list[list[float]]:
        # one token must be left to generate: vLLM takes no request without
        sequences = joined(prompts, continuations, self._max_model_len - 1)
        asked = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        answers = self._answers([{"prompt": sequence, **asked} for sequence in sequences], progress=False)
        return [
            [
                step[str(token)]["logprob"]
                for step, token in zip(answer["prompt_logprobs"][-len(ids) :], ids, strict=True)
            ]
            for answer, ids in zip(answers, continuations, strict=True)
        ]

    @property
    def _known(self) -> list[ServerConnection]:
        """The servers that have told of themselves; one that was left out from the start has not."""
        return [server for server in [*self._servers, *self._left_out] if server.max_model_len]

    @property
    def _max_model_len(self) -> int:
        return min(server.max_model_len for server in self._known)

    def _answers(self, bodies: Sequence[dict[str, Any]], progress: bool) -> list[dict[str, Any]]:
        """What the servers answer to each request, in order."""
        if self._update is None:
            raise RuntimeError("the servers hold unknown weights: sync before generating")
        if not self._enough():
            self._take_back()
        answers: dict[int, dict[str, Any]] = {}
        for _ in range(_ATTEMPTS + len(self._servers)):
            waiting = [i for i in range(len(bodies)) if i not in answers]
            holds = self._ready_servers()
            shares = {server: waiting[place :: len(holds)] for place, server in enumerate(holds)}
            requests = {server: [bodies[i] for i in share] for server, share in shares.items()}
            for server, outcome in send_requests(requests, progress).items():
                if isinstance(outcome, ServerGoneError):
                    self._failed(server, outcome)
                elif self._still_holds(server, holds[server]):
                    answers.update(zip(shares[server], outcome, strict=True))
            if len(answers) == len(bodies):
                return [answers[i] for i in range(len(bodies))]
        raise SVFError(
            "the vLLM servers fail again and again, or their weights change while they answer: read their logs, and "
            "give each run servers of its own"
        )

    def _ready_servers(self) -> dict[ServerConnection, Held]:
        """The servers that hold the weights of the last sync, and what each says of them."""
        assert self._update is not None
        ready = {}
        for server in list(self._servers):
            try:
                if server not in self._known:  # another process took it back
                    server.check(self._dtype)
                ready[server] = self._update.ensure(server)
                server.empty_cache()
            except ServerGoneError as error:
                self._failed(server, error)
        return ready

    def _still_holds(self, server: ServerConnection, before: Held) -> bool:
        try:
            return held(server.status()) == before
        except ServerGoneError as error:
            self._failed(server, error)
            return False

    # ---- weights ------------------------------------------------------------------------------------------------

    def sync(self, model: nn.Module, everything: bool = False) -> SyncReport:
        """Serve the weights of `model` from now on. Frozen weights are those of the servers' own checkpoint: with `z`
        alone, `everything` has no more to send."""
        refuse_other_trained_parameters(model)
        extended = all(server.takes_z for server in self._servers)
        z_alone = is_svf_alone(model) and not self._full_push and extended
        # vLLM's own loader takes a fused weight whole or not at all: of q, k and v none may be missing
        update: Update = ZUpdate(model) if z_alone else FullPush(model, everything or not extended, self._run)
        shared = run_on_main_process(lambda: self._bring(update), update.take_part)
        update.version, self._update, self.stale = shared["version"], update, False
        servers = {server.url: server for server in [*self._servers, *self._left_out]}
        self._servers = [servers.pop(url) for url in shared["servers"]]
        self._left_out = list(servers.values())
        return SyncReport(update.tensors, shared["bytes"])

    def _bring(self, update: Update) -> dict[str, Any]:
        """Bring all servers up to date; those that were left out and are back too."""
        self._take_back()
        outcomes = update.bring(self._servers)
        for server, outcome in outcomes.items():
            if isinstance(outcome, ServerGoneError):
                self._failed(server, outcome)
        sent = sum(outcome for outcome in outcomes.values() if isinstance(outcome, int))
        return {"version": update.version, "bytes": sent, "servers": [server.url for server in self._servers]}

    def _failed(self, server: ServerConnection, error: ServerGoneError) -> None:
        """Go on without `server`, or wait until it is up again, with which it is not up to date yet."""
        if server not in self._servers:
            return
        self._servers.remove(server)
        self._left_out.append(server)
        if self._on_failure == "leave_out" and self._servers:
            print(f"warning: vLLM server {server.url} is left out: {error}", file=sys.stderr, flush=True)
            return
        print(
            f"warning: vLLM server {server.url} does not answer ({error}); waiting {self._timeout:g} s for it",
            file=sys.stderr,
            flush=True,
        )
        self._take_back()

    def _take_back(self) -> None:
        """
        Use those servers again that were left out and answer. Where there is no going on without them, wait.

        Raises:
            SVFError: they do not answer in time.
        """
        end = time.monotonic() + self._timeout
        while self._left_out:
            for server in list(self._left_out):
                if server.is_up():
                    try:
                        back = server if server in self._known else self._checked(server)
                    except ServerGoneError:
                        continue
                    self._left_out.remove(server)
                    self._servers.append(back)
                    print(f"vLLM server {server.url} is back", file=sys.stderr, flush=True)
            if self._enough():
                return
            if time.monotonic() >= end:
                gone = ", ".join(server.url for server in self._left_out)
                raise SVFError(f"vLLM server {gone} does not answer any more: start it again and resume the run")
            time.sleep(1.0)

    def _enough(self) -> bool:
        return bool(self._servers) if self._on_failure == "leave_out" else not self._left_out


def _body(prompt: list[int], sampling: Sampling, seed: int, limit: int) -> dict[str, Any]:
    """One request for `/v1/completions`."""
    return {
        **sampling.vllm_settings(seed),
        "prompt": prompt,
        # unlike the engine, the server refuses what would not fit at its longest
        "max_tokens": min(sampling.max_tokens, limit - len(prompt)),
        "return_token_ids": True,
        **sampling.extra,
    }


def _completion(answer: dict[str, Any]) -> Completion:
    logprobs = answer["logprobs"]["token_logprobs"] if answer["logprobs"] is not None else None
    return Completion(answer["token_ids"], logprobs, answer["finish_reason"] == "stop")
