"""What the classifier of dispatch is asked (Transformer², arXiv 2501.06252, section 3.2): it is the base model with a
prompt, or an expert that was trained to classify."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from svf_rl.generation.prompts import Conversation, encode_prompts
from svf_rl.quickstart import model_path
from svf_rl.quickstart.dispatch_skill import DISPATCH, DISPATCH_PROMPT
from svf_rl.runs.provenance import BUNDLED, list_tasks
from svf_rl.runs.run_folder import read_summary
from svf_rl.tasks.classification import classification
from svf_rl.tasks.dispatch import SYSTEM_PROMPT


def classification_ids(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    system_prompt: str,
    template_arguments: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """What the classifier reads for each conversation: the last turn of the user, after `system_prompt`."""
    asked = [classification(conversation, system_prompt) for conversation in conversations]
    return encode_prompts(tokenizer, asked, **(template_arguments or {}))


def default_system_prompt(model: str, classifier: Path | None = None) -> str:
    """
    The system message to classify with. A trained classifier is asked as it was in training, which its folder's
    `summary.json` tells; the bundled model as its corpus asks; any other as the task `dispatch` does.

    Args:
        model (`str`): the base model, as `from_pretrained` or a recipe takes it.
        classifier (`Path`, *optional*): folder of a trained dispatch expert.

    Raises:
        SVFError: the `summary.json` there is damaged.
    """
    recipe = {} if classifier is None else read_summary(classifier).recipe
    if recipe.get("system_prompt"):
        return str(recipe["system_prompt"])
    tasks = list_tasks(recipe)
    if "dispatch" in tasks:
        return SYSTEM_PROMPT
    bundled = model == BUNDLED or Path(model).resolve() == model_path().resolve()
    return DISPATCH_PROMPT if bundled or f"{BUNDLED}:{DISPATCH}" in tasks else SYSTEM_PROMPT
