"""The generator that the settings ask for."""

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from svf_rl.errors import SVFError
from svf_rl.generation import Rollouts
from svf_rl.training.config import SVFReinforceConfig


def build_rollouts(
    model: PeftModel,
    args: SVFReinforceConfig,
    device: str,
    eos_token_ids: list[int],
    tokenizer: PreTrainedTokenizerBase,
) -> Rollouts:
    """The vLLM of `use_vllm`, colocated or on servers, or transformers' generation with the model in training."""
    if not args.use_vllm:
        from svf_rl.generation.transformers_rollouts import TransformersRollouts

        return TransformersRollouts(
            model, eos_token_ids=eos_token_ids, pad_token_id=tokenizer.pad_token_id, tokenizer=tokenizer
        )
    dtype = model.get_input_embeddings().weight.dtype
    if args.vllm_mode == "server":
        from svf_rl.generation.vllm_server import VLLMServers

        return VLLMServers(
            args.server_urls,
            dtype=str(dtype).removeprefix("torch."),
            timeout=args.vllm_server_timeout,
            on_failure=args.vllm_server_failure,
            device=device,
        )
    from svf_rl.generation.colocated_vllm import ColocatedVLLM

    path = model.get_base_model().config._name_or_path
    if not path:
        raise SVFError("vLLM needs the base model as a folder or Hub name: load it with from_pretrained")
    return ColocatedVLLM(
        path,
        dtype=dtype,
        seed=args.seed,
        device=device,
        max_model_len=args.vllm_max_model_length,
        gpu_memory_utilization=args.vllm_gpu_memory_utilization,
        enable_sleep_mode=args.vllm_enable_sleep_mode,
        enforce_eager=args.vllm_enforce_eager,
        trust_remote_code=args.trust_remote_code,
    )
