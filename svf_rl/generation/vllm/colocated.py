"""CompletionGenerator from a vLLM engine in the training process."""

import importlib
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from svf_rl.errors import SVFError
from svf_rl.generation.processes import process_count
from svf_rl.generation.prompts import check_prompt_lengths, join_continuations
from svf_rl.generation.sampling import Completion, Sampling, SyncReport
from svf_rl.generation.vllm import require_vllm, vllm_errors
from svf_rl.generation.vllm.classes import separate_classes
from svf_rl.generation.vllm.cpu import check_not_repacked, cpu_length, plain_cpu_collectives, plain_cpu_weights
from svf_rl.generation.vllm.settings import completion_of, sampling_params
from svf_rl.generation.vllm.shutdown import LIVING_ENGINES
from svf_rl.generation.vllm.tensor_parallel import EngineRanks, check_processes
from svf_rl.generation.weights import SharedWeights, active_multipliers, stored_weights
from svf_rl.waiting import say_waiting

if TYPE_CHECKING:  # which imports vLLM
    from svf_rl.generation.vllm.factored.adapters import AdapterRows

POLICY = 1
"""The adapter of a factored engine that `sync` writes."""
MOST_ADAPTERS = 64
"""Of a factored engine that are decoded together; requests for further ones wait."""


class ColocatedVLLMGenerator:
    """
    A vLLM engine in the training process, on the device of the trained model.

    Args:
        model (`str`): Folder or Hub name of the base model; the engine reads it once, adapters arrive by `sync`.
        dtype (`torch.dtype`): Type of the engine's weights: that of the trained model, or log-probabilities differ.
        seed (`int`): Seed of the engine; every completion has its own seed too.
        device (`str`, *optional*, defaults to `"cuda"`): Type of the device, `"cuda"` or `"cpu"`.
        revision (`str`, *optional*): Branch, tag or commit of the model on the Hub.
        max_model_len (`int`, *optional*):
            Prompt and completion together, in tokens; default: the model's own limit, and on the CPU at most 4,096,
            since what is allowed there takes memory and time at the start.
        max_num_seqs (`int`, *optional*, defaults to 256): Sequences decoded together.
        gpu_memory_utilization (`float`, *optional*, defaults to 0.3): Share of the GPU's memory for the engine.
        tensor_parallel_size (`int`, *optional*, defaults to 1):
            Consecutive processes that form one engine, with a shard of each weight in each of them. They make every
            call together, each with its own prompts, and each gets the answers to these.
        enable_sleep_mode (`bool`, *optional*, defaults to `False`):
            Free the engine's memory while the model trains (CUDA), but for weights that are shared. Whole weights are
            dropped, so every sync pushes all of them.
        enforce_eager (`bool`, *optional*, defaults to `False`): Skip all compilation: slower tokens, a faster
            start, and no C++ compiler needed.
        trust_remote_code (`bool`, *optional*, defaults to `False`): As in transformers.
        shared ([`SharedWeights`], *optional*):
            What the engine holds as one with a model, on whose device it must be: it computes with the model's factors,
            and the model's other frozen weights become views of the engine's. They then never change: each adapter is a
            row of `adapters`, a request names its own, and `sync` writes the row [`POLICY`]. By default the engine
            holds whole weights, which `sync` replaces.

    Raises:
        SVFError: vLLM is missing, or does not start with this model; in one line.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: torch.dtype,
        seed: int,
        device: str = "cuda",
        revision: str | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int = 256,
        gpu_memory_utilization: float = 0.3,
        tensor_parallel_size: int = 1,
        enable_sleep_mode: bool = False,
        enforce_eager: bool = False,
        trust_remote_code: bool = False,
        shared: SharedWeights | None = None,
    ):
        if enable_sleep_mode and device != "cuda":
            raise SVFError("vllm_enable_sleep_mode works on CUDA only: turn it off here")
        check_processes(tensor_parallel_size, process_count())
        # The engine must be in this process, or its weights cannot be reached.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        require_vllm()
        llm_class = _import_llm()
        LIVING_ENGINES.before_start()
        self._sleeps = enable_sleep_mode
        # vLLM's own `enforce_eager` still compiles its sampler: half a minute, and a C++ compiler, for a small model
        self._stance = "force_eager" if enforce_eager else "default"
        with (
            ExitStack() as stack,
            _preserved_rng(),
            _launched(),
            plain_cpu_weights(),
            plain_cpu_collectives(),
            separate_classes() as separate,
            torch.compiler.set_stance(self._stance),
            vllm_errors(f"vLLM does not start with {model}"),
            say_waiting("vLLM is starting"),
        ):
            adapters = {}
            if shared is not None:
                from svf_rl.generation.vllm.factored.loader import sharing
                from svf_rl.generation.vllm.factored.patches import patch_adapters
                from svf_rl.generation.vllm.plugin import LOAD_FORMAT, register

                register()
                patch_adapters()
                stack.enter_context(sharing(shared))
                stack.enter_context(shared.parked())
                adapters = {
                    "load_format": LOAD_FORMAT,
                    "enable_lora": True,
                    "max_loras": min(max_num_seqs, MOST_ADAPTERS),
                }
            if max_model_len is None and device == "cpu":
                max_model_len = cpu_length(model, revision, trust_remote_code)
            self.llm = llm_class(
                model=model,
                revision=revision,
                tokenizer_revision=revision,
                dtype=str(dtype).removeprefix("torch."),
                seed=seed,
                max_model_len=max_model_len,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max(4096, max_num_seqs, max_model_len or 0),
                gpu_memory_utilization=gpu_memory_utilization,
                tensor_parallel_size=tensor_parallel_size,
                enable_sleep_mode=enable_sleep_mode,
                enforce_eager=enforce_eager,
                # of vLLM's 128 tokens the completions of a shorter prompt would share none
                block_size=32 if device == "cpu" else None,
                # vLLM rewinds a seeded random generator after part of a prompt, which those of the CPU cannot do
                enable_chunked_prefill=device != "cpu",
                trust_remote_code=trust_remote_code,
                distributed_executor_backend="external_launcher",
                # after temperature and truncation: the distribution from which tokens are sampled
                logprobs_mode="processed_logprobs",
                disable_log_stats=True,
                use_tqdm_on_load=False,
                **adapters,
            )
            separate(self.model)
        LIVING_ENGINES.add(self.llm)
        self._ranks = EngineRanks(tensor_parallel_size)
        self.adapters: AdapterRows | None = None
        if shared is None:
            check_not_repacked(self.model)
        else:
            self.adapters = self.llm.llm_engine.model_executor.driver_worker.model_runner.lora_manager
        self.stale = self._asleep = False
        self._sleep()

    @property
    def model(self) -> nn.Module:
        """vLLM's own module, whose weights `sync` replaces."""
        return self.llm.llm_engine.model_executor.driver_worker.model_runner.model

    def generate(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling | Sequence[Sampling],
        seeds: Sequence[int],
        progress: bool = False,
        adapters: Sequence[int] | None = None,
    ) -> list[Completion]:
        """One completion a prompt, in order. `sampling`: of all, or one a prompt. `adapters`: numbers of a factored
        engine's adapters, one a prompt, 0 for the base model; default: the policy."""
        samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
        requests, own = self._ranks.gather(list(zip(prompts, samplings, seeds, strict=True)))
        if not requests:
            return []
        check_prompt_lengths([prompt for prompt, *_ in requests], self.max_length)
        params = [sampling_params(sampling, seed) for _, sampling, seed in requests]
        outputs = self._outputs([prompt for prompt, *_ in requests], params, progress and self._ranks.first, adapters)
        return [completion_of(output) for output in outputs[own]]

    def loglikelihood(
        self,
        prompts: Sequence[list[int]],
        continuations: Sequence[list[int]],
        adapters: Sequence[int] | None = None,
    ) -> list[list[float]]:
        from vllm import SamplingParams

        (prompts, own), (continuations, _) = self._ranks.gather(prompts), self._ranks.gather(continuations)
        # one token must be left to generate: vLLM refuses a request without one
        sequences = join_continuations(prompts, continuations, self.max_length - 1)
        if not sequences:
            return []
        # Scores of prompt tokens do not depend on temperature or seed. A request for them reads no cached prefix, and
        # returns all of them even if the prompt was computed in parts. 0: only of the prompt's own tokens.
        scores = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, flat_logprobs=True, detokenize=False)
        outputs = self._outputs(sequences, [scores] * len(sequences), progress=False, adapters=adapters)
        return [
            output.prompt_logprobs.logprobs[-len(continuation) :]
            for output, continuation in list(zip(outputs, continuations, strict=True))[own]
        ]

    @property
    def max_length(self) -> int:
        """Tokens of prompt and completion that the engine takes."""
        return self.llm.llm_engine.model_config.max_model_len

    def _outputs(
        self,
        prompts: Sequence[list[int]],
        params: Sequence[Any],
        progress: bool,
        adapters: Sequence[int] | None,
    ) -> list[Any]:
        """The awake engine's output for each prompt, in order."""
        if self.stale:
            raise RuntimeError("the engine dropped its weights when it slept: sync before generating")
        if self._sleeps:
            self._wake_weights()
            self.llm.wake_up(tags=["kv_cache"])
        # A cached prefix was computed in another batch and differs in the last bits: without it, the result depends on
        # this call only.
        self.llm.reset_prefix_cache()
        with _preserved_rng(), torch.compiler.set_stance(self._stance):
            requests = [{"prompt_token_ids": ids} for ids in prompts]
            # an engine that failed in a step, such as out of memory, has lost track of its requests
            with vllm_errors("vLLM failed"):
                outputs = self.llm.generate(
                    requests,
                    list(params),
                    use_tqdm=progress,
                    lora_request=self._adapter_requests(len(prompts), adapters),
                )
        self._sleep()
        return outputs

    def _adapter_requests(self, count: int, adapters: Sequence[int] | None) -> list[Any] | None:
        """What tells vLLM the adapter of each request. Raises `SVFError` for one that the engine has not."""
        if self.adapters is None:
            return None
        from vllm.lora.request import LoRARequest

        numbers = list(adapters) if adapters is not None else [POLICY if POLICY in self.adapters else 0] * count
        for number in set(numbers):
            self.adapters.check(number)
        return [LoRARequest(str(number), number, lora_path="in memory") if number else None for number in numbers]

    def sync(self, model: nn.Module, everything: bool = False) -> SyncReport:
        if self.adapters is not None:
            return put_policy(self.adapters, model)
        self._wake_weights()
        tensors = pushed = 0
        for name, weight in stored_weights(model, everything or self.stale):
            self.model.load_weights([(name, weight)])
            tensors, pushed = tensors + 1, pushed + weight.nbytes
            del weight  # before the next one is rebuilt
        self.llm.reset_prefix_cache()
        self.stale = False
        return SyncReport(tensors, pushed)

    def _wake_weights(self) -> None:
        if self._asleep:
            torch.cuda.empty_cache()
            self.llm.wake_up(tags=["weights"])
            self._asleep = False

    def _sleep(self) -> None:
        """Level 2 frees the weights and keeps no copy on the CPU: the trained model has all of them. Level 1 keeps one,
        for experts, which cannot be loaded a second time; shared weights it does not know."""
        if self._sleeps:
            level = 1 if self.adapters is not None or self.llm.llm_engine.model_config.is_moe else 2
            self.llm.sleep(level=level)
            self._asleep, self.stale = True, level == 2


def put_policy(adapters: Any, model: nn.Module) -> SyncReport:
    """Make the active adapters of `model` the [`POLICY`] among `adapters`."""
    multipliers = active_multipliers(model)
    adapters.put(POLICY, multipliers)
    return SyncReport(1, sum(m.nbytes for m in multipliers.values()))


def _import_llm() -> Any:
    """
    `vllm.LLM`, imported in a thread: vLLM keeps the traceback of a missing optional package, and with it every frame of
    the thread and the models in it, for the whole life of the process.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: importlib.import_module("vllm").LLM).result()


@contextmanager
def _launched() -> Iterator[None]:
    """The engine reads its rank and address from torchrun's variables; set those of a single process if they are
    missing. With port 0 torch binds one that is free; one picked here could be taken before torch binds it."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    missing = {key: value for key, value in alone.items() if key not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for key in missing:
            del os.environ[key]


@contextmanager
def _preserved_rng() -> Iterator[None]:
    """Building an engine reseeds Python, NumPy and torch, and sampling also uses torch's global generator; the random
    streams of the training must not depend on either."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        yield
    random.setstate(python)
    np.random.set_state(numpy)
