"""vLLM's finding of adapters by name in a folder, for those of SVF."""

from pathlib import Path

from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver

from svf_rl.errors import SVFError
from svf_rl.storage.json_files import read_json
from svf_rl.svf.saved_config import CONFIG


class FolderResolver(LoRAResolver):
    """
    SVF adapters in a folder: `math` in a request is the adapter in `root/math`.

    Args:
        root (`str`): `VLLM_LORA_RESOLVER_CACHE_DIR`. Nothing outside of it is looked at.
    """

    def __init__(self, root: str):
        self._root = Path(root).resolve()

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """`None` where there is no such folder, or no SVF adapter in it. Whether it suits the model is seen when it is
        read."""
        if lora_name != Path(lora_name).name or lora_name.startswith("."):
            return None
        folder = self._root / lora_name
        if not folder.resolve().is_relative_to(self._root) or not (folder / CONFIG).is_file():
            return None
        try:
            config = read_json(folder / CONFIG, "save the adapter again", {"peft_type": str})
        except SVFError:  # it is said when somebody loads it
            return None
        if config["peft_type"] != "SVF":
            return None
        return LoRARequest(lora_name, 1, str(folder))  # vLLM gives it the number
