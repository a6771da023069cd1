"""What a recipe says of the base model. Nothing slow is imported here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from svf_rl.described import described
from svf_rl.quickstart import MODELS, model_path


@dataclass
class ModelArguments:
    """The base model."""

    model_name_or_path: str = described(
        "quickstart",
        "Hub name, local folder or GGUF file; 'quickstart' is the bundled model, and 'quickstart-tools' "
        "the one that can ask a calculator.",
    )
    model_revision: str | None = described(None, "Branch, tag or commit on the Hub.")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = described(
        "auto", "Type of the base weights; auto is the type they are stored in."
    )
    attn_implementation: str | None = described(None, "Attention of transformers: sdpa, eager, flash_attention_2.")
    trust_remote_code: bool = described(False, "Run model code that comes from the Hub.")
    device: Literal["auto", "cpu"] = described(
        "auto", "cpu trains on the CPU: also where there is a GPU, and a model of more than a billion parameters."
    )

    @property
    def location(self) -> str:
        """What `from_pretrained` and vLLM take: `model_name_or_path`, or the folder of the bundled model or of what a
        GGUF file was converted to. Raises `SVFError` for a file that cannot be."""
        if self.model_name_or_path.endswith(".gguf"):
            from svf_rl.models.gguf.read import converted_folder

            return str(converted_folder(Path(self.model_name_or_path).expanduser()))
        name = self.model_name_or_path
        return str(model_path(name)) if name in MODELS else name
