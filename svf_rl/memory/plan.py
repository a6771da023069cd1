"""Whether a recipe fits its GPUs: the memory of its parts under each ZeRO stage, and the verdict."""

from dataclasses import dataclass, replace
from functools import cached_property

from svf_rl.errors import SVFError
from svf_rl.memory.arithmetic import (
    GPU,
    RESERVE,
    STAGES,
    KVCache,
    Run,
    bucket_bytes,
    gathered_bytes,
    gib,
    held_bytes,
    kv_cache,
)
from svf_rl.memory.model import PlannedModel, kv_bytes_a_token
from svf_rl.memory.trace import Activations
from svf_rl.settings.recipe import Recipe
from svf_rl.settings.recipe_checks import check_zero

# Tokens of a prompt where the recipe does not bound them.
_PROMPT = 512
# How many sequences `TransformersGenerator` generates together.
_GENERATED_TOGETHER = 64


@dataclass(frozen=True)
class Machine:
    """`nodes` nodes with `gpus` GPUs each, of `memory` bytes each."""

    gpus: int
    nodes: int
    memory: int

    def __post_init__(self) -> None:
        for name, value in (("--gpus", self.gpus), ("--nodes", self.nodes)):
            if value < 1:
                raise SVFError(f"{name} must be at least 1, not {value}")

    @property
    def processes(self) -> int:
        return self.gpus * self.nodes


class MemoryPlan:
    """
    The memory of a recipe on a machine.

    Args:
        recipe ([`Recipe`]): Read for as many processes as the machine has GPUs.
        stage (`int`, *optional*): ZeRO stage; default: the lowest of 0, 2 and 3 with which the run fits, or 0.
        prompt (`int`, *optional*): Tokens of the longest prompt; default: what `vllm_max_model_length` leaves, or 512.

    Raises:
        SVFError: the recipe cannot be planned, or the stage needs more processes.
    """

    def __init__(self, recipe: Recipe, machine: Machine, stage: int | None = None, prompt: int | None = None):
        training = recipe.training
        if stage and machine.processes == 1:
            raise SVFError(f"--zero {stage} shards over several processes: raise --gpus or --nodes, or leave it out")
        if stage:
            check_zero(recipe.raw, stage, machine.processes)
        if prompt is not None and prompt < 1:
            raise SVFError(f"--prompt-tokens must be at least 1, not {prompt}")
        self.recipe, self.machine = recipe, machine
        self.model = PlannedModel(recipe)
        self.notes = [*recipe.warnings, *self.model.notes]
        self.completion = training.max_completion_length
        self.prompt = self._prompt(prompt)
        self.length = training.vllm_max_model_length or self.prompt + self.completion
        # vLLM does not start unless one sequence of the longest kind fits, even if there will never be one
        self.longest = training.vllm_max_model_length or self.model.positions or self.length
        rollouts = training.generation_backend
        colocated = rollouts == "colocated"
        self.run = Run(
            processes=machine.processes,
            stage=stage or 0,
            micro_batch=training.per_device_train_batch_size,
            accumulation=training.gradient_accumulation_steps,
            checkpointing=training.gradient_checkpointing,
            rollouts=rollouts,
            share=training.vllm_gpu_memory_utilization if colocated else 0.0,
            sleep=colocated and training.vllm_enable_sleep_mode,
            tensor_parallel=training.vllm_tensor_parallel_size if colocated else 1,
            shareable=self.model.shareable and training.vllm_weights != "merged",
        )
        if stage is None and machine.processes > 1:
            runs = [replace(self.run, stage=each) for each in self.stages if each != 1]
            self.run = next((run for run in runs if self.fits(run)), self.run)
        self._note_omissions()

    @cached_property
    def stages(self) -> list[int]:
        """The ZeRO stages under which the machine can run the recipe; 0 is without DeepSpeed."""
        several = self.machine.processes > 1
        return [stage for stage in STAGES if stage == 0 or (several and self.allows(stage))]

    def allows(self, stage: int) -> bool:
        """Whether several processes can run the recipe under this ZeRO stage."""
        try:
            check_zero(self.recipe.raw, stage, processes=2)
        except SVFError:
            return False
        return True

    def gpu(self, run: Run) -> GPU:
        """The memory of one GPU under `run`."""
        return self._gpu(run, self.model.activations(run.micro_batch, self.prompt, run.checkpointing))

    def fits(self, run: Run) -> bool:
        """Whether `run` has no [`problems`]; fast where it does not fit even without activations."""
        return self._gpu(run, None).peak <= self.machine.memory and not self.problems(run)

    def _gpu(self, run: Run, activations: Activations | None) -> GPU:
        model, memory = self.model, self.machine.memory
        parts = held_bytes(model.tensors, run)
        always = sum(parts.values()) + RESERVE
        colocated, own = run.rollouts == "colocated", run.rollouts == "transformers"
        engine = int(run.share * memory) if colocated else 0
        asleep = self.engine_weights(run) if run.shared else 0
        reduce = bucket_bytes(model.tensors, run)
        whole = gathered_bytes(model.tensors, run, model.output_layer, model.itemsize)
        peak = None if activations is None else activations.peak
        return GPU(
            held=parts,
            buckets=reduce,
            gathered=whole,
            activations=peak,
            engine=engine,
            update=always + reduce + whole + (peak or 0) + (asleep if run.sleep else engine),
            rollout=always + engine + (self._generation(run, activations) + whole if own else 0),
            # stage 3 gathers W, U and Vt of a matrix to rebuild it
            sync=always
            + engine
            + (model.rebuild + model.largest_factors * (run.stage == 3) if colocated and not run.shared else 0),
        )

    def _generation(self, run: Run, activations: Activations | None) -> int:
        """Bytes of transformers' generation: its KV cache, and roughly a forward pass over the prompts."""
        length, together = self.prompt + self.completion, min(_GENERATED_TOGETHER, self.generated)
        cache = together * length * (self.token_bytes() or 0)
        if activations is None:
            return cache
        passing = max(activations.forward - activations.saved, activations.reference)
        return cache + passing * together * self.prompt // (run.micro_batch * length)

    def cache(self, run: Run) -> KVCache | None:
        """What is left for the rollouts' KV cache; `None` where no vLLM shares the GPU."""
        if run.rollouts != "colocated":
            return None
        return kv_cache(run, self.machine.memory, self.engine_weights(run), self.token_bytes(run.tensor_parallel))

    def engine_weights(self, run: Run) -> int:
        """Bytes of the weights in the share of a colocated vLLM, over all its GPUs."""
        return self.model.tensors.base - (self.model.merged_bytes if run.shared else 0)

    def token_bytes(self, ranks: int = 1) -> int | None:
        """Bytes of the KV cache for one token on each of the `ranks` GPUs of an engine; `None` where the architecture's
        cache is not known here."""
        return kv_bytes_a_token(self.model.config, self.model.itemsize, ranks)

    @property
    def generated(self) -> int:
        """Sequences that one process generates for one generation batch."""
        return self.recipe.training.generation_batch_size // self.machine.processes

    def problems(self, run: Run) -> list[str]:
        """One line for each thing that does not fit; none where the run does."""
        memory, found = self.machine.memory, []
        each = self.gpu(run)
        parts = {"an update": each.update, "rollouts": each.rollout, "a weight sync": each.sync}
        name = max(parts, key=lambda part: parts[part])
        if parts[name] > memory:
            found.append(f"{name} needs {gib(parts[name])} GiB of a GPU's {gib(memory)}")
        cache = self.cache(run)
        if cache is not None and (cache.bytes <= 0 or cache.sequences(self.longest) == 0):
            shorter = "" if self.longest == self.length else f", which vllm_max_model_length: {self.length} shortens"
            found.append(
                f"vLLM's share of {gib(each.engine)} GiB does not hold its weights "
                f"({gib(each.engine - cache.bytes)} GiB) and one sequence of {self.longest} tokens{shorter}"
            )
        return found

    def _prompt(self, given: int | None) -> int:
        limit, positions = self.recipe.training.vllm_max_model_length, self.model.positions
        if given is not None:
            longest = given + self.completion
            if positions is not None and longest > positions:
                raise SVFError(
                    f"--prompt-tokens {given} and max_completion_length {self.completion} are more than the model's "
                    f"{positions} positions: lower one of them"
                )
            if limit is not None and longest > limit:
                raise SVFError(
                    f"--prompt-tokens {given} and max_completion_length {self.completion} are more than "
                    f"vllm_max_model_length ({limit}): raise it, or lower one of them"
                )
            return given
        if limit is not None:
            if limit <= self.completion:
                raise SVFError(
                    f"vllm_max_model_length ({limit}) leaves no room for a prompt in addition to max_completion_length "
                    f"({self.completion}): raise it"
                )
            return limit - self.completion
        room = _PROMPT if positions is None else min(_PROMPT, positions - self.completion)
        self.notes.append(f"the recipe does not bound prompts: planned for {max(1, room)} tokens (--prompt-tokens)")
        return max(1, room)

    def _note_omissions(self) -> None:
        model, training = self.model, self.recipe.training
        if self.run.rollouts == "colocated":
            self.notes.append(
                "vLLM's own work space and CUDA graphs, often 1 to 3 GiB, come out of what is left for the KV cache"
            )
            if self.token_bytes() is None:
                self.notes.append(f"the KV cache of {model.config.model_type} a token is not known here")
            if self.run.shared:
                self.notes.append(
                    f"vLLM's weights are the model's own, and those of the adapted matrices are on no GPU "
                    f"({gib(model.merged_bytes)} GiB)"
                )
        if getattr(model.config, "quantization_config", None):
            self.notes.append(
                f"the checkpoint is quantized: planned as unquantized {str(model.dtype).removeprefix('torch.')}, "
                "the only form in which SVF can adapt it"
            )
        every = training.steps_per_generation * training.num_iterations
        if training.gradient_accumulation_steps % every and training.objective != "next_token":
            size = self.run.micro_batch * (self.completion + 1) * model.vocabulary * 2 * model.itemsize
            self.notes.append(
                "several steps from one set of completions: TRL computes full logits for the old policy, about "
                f"{gib(size)} GiB, which is not part of the sums"
            )
        if self.run.stage or self.machine.processes > 1:
            self.notes.append(
                "the weights that ZeRO-3 gathers are an upper bound, by DeepSpeed's default of "
                "stage3_max_live_parameters: 1e9"
            )
