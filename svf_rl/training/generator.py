"""The generator that the settings ask for."""

from functools import partial

from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from svf_rl.errors import SVFError
from svf_rl.generation import CompletionGenerator
from svf_rl.generation.vllm.tensor_parallel import check_divides
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.storage.bundled import find_accelerate_config
from svf_rl.training.weight_sharing import start_sharing


def build_generator(
    model: PeftModel,
    args: SVFReinforceConfig,
    device: str,
    eos_token_ids: list[int],
    tokenizer: PreTrainedTokenizerBase,
    max_num_seqs: int = 256,
) -> CompletionGenerator:
    """The vLLM of `use_vllm`, colocated (where it decodes `max_num_seqs` sequences together) or on servers, or
    transformers' generation with the model in training."""
    if not args.use_vllm:
        if is_deepspeed_zero3_enabled():
            raise SVFError(
                "use_vllm=False cannot generate with a model that ZeRO-3 has shared out: set use_vllm=True, or use "
                f"{find_accelerate_config('accelerate_configs/zero2.yaml')}"
            )
        from svf_rl.generation.transformers_generator import TransformersGenerator

        return TransformersGenerator(
            model, eos_token_ids=eos_token_ids, pad_token_id=tokenizer.pad_token_id, tokenizer=tokenizer
        )
    if getattr(model.get_base_model(), "hf_quantizer", None) is not None:
        raise SVFError("use_vllm=True cannot roll out a quantised model, as vLLM has its own weights: set it to False")
    dtype = model.get_input_embeddings().weight.dtype
    if args.vllm_mode == "server":
        from svf_rl.generation.server.generator import VLLMServersGenerator

        return VLLMServersGenerator(
            args.server_urls,
            dtype=str(dtype).removeprefix("torch."),
            timeout=args.vllm_server_timeout,
            on_failure=args.vllm_server_failure,
            device=device,
            folder=args.vllm_server_folder,
        )
    from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator

    config = model.get_base_model().config
    path = config._name_or_path
    if not path:
        raise SVFError("vLLM needs the base model as a folder or Hub name: load it with from_pretrained")
    check_divides(config, args.vllm_tensor_parallel_size)
    start = partial(
        ColocatedVLLMGenerator,
        path,
        dtype=dtype,
        seed=args.seed,
        device=device,
        revision=getattr(config, "_commit_hash", None),
        max_model_len=args.vllm_max_model_length,
        max_num_seqs=max_num_seqs,
        gpu_memory_utilization=args.vllm_gpu_memory_utilization,
        enable_sleep_mode=args.vllm_enable_sleep_mode,
        enforce_eager=args.vllm_enforce_eager,
        trust_remote_code=args.trust_remote_code,
        tensor_parallel_size=args.vllm_tensor_parallel_size,
    )
    return start_sharing(model, args, lambda weights: start(shared=weights))
