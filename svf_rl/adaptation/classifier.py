"""What a classifier is asked, and the classes that it can name: as in its training."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from svf_rl.errors import SVFError
from svf_rl.generation.prompts import Conversation, encode_prompts
from svf_rl.quickstart import model_path
from svf_rl.quickstart.dispatch_skill import DISPATCH, DISPATCH_PROMPT
from svf_rl.rewards.verifiers.dispatch_label import LABELS
from svf_rl.runs.provenance import BUNDLED, list_tasks
from svf_rl.runs.run_folder import read_summary
from svf_rl.tasks import TaskOptions, find_task
from svf_rl.tasks.dispatch import class_labels, default_system_prompt, last_user_message
from svf_rl.tasks.task import chat


@dataclass(frozen=True)
class ClassifierPrompt:
    """
    What stands around a request that is to be classified.

    Args:
        system_prompt (`str`): asks for the class.
        labels (`Sequence[str]`, *optional*): the classes; default: those of Transformer², and `other`.
        examples (`Sequence`, *optional*): turns of worked examples before the request.
    """

    system_prompt: str
    labels: Sequence[str] = LABELS
    examples: Sequence[dict[str, str]] = ()


def classification_ids(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    asked: ClassifierPrompt,
    **template_arguments: Any,
) -> list[list[int]]:
    """What the classifier reads for each conversation: the last turn of the user, after the system message and the
    worked examples of `asked`."""
    prompts = []
    for conversation in conversations:
        *system, request = chat(last_user_message(conversation), asked.system_prompt)
        prompts.append([*system, *asked.examples, request])
    return encode_prompts(tokenizer, prompts, **template_arguments)


def find_classifier_prompt(model: str, classifier: Path | None = None) -> ClassifierPrompt:
    """
    How to ask for the class. A trained classifier is asked as it was in training, which its folder's `summary.json`
    tells; the bundled model as its corpus asks; any other as the task `dispatch` does.

    Args:
        model (`str`): the base model, as `from_pretrained` or a recipe takes it.
        classifier (`Path`, *optional*): folder of a trained dispatch expert.

    Raises:
        SVFError: the `summary.json` there is damaged, or the worked examples of its training cannot be read again.
    """
    recipe = {} if classifier is None else read_summary(classifier).recipe
    tasks = list_tasks(recipe)
    bundled = model == BUNDLED or Path(model).resolve() == model_path().resolve()
    if "dispatch" in tasks:
        classes = recipe.get("classes")
        default, labels = default_system_prompt(classes), class_labels(classes)
    elif bundled or f"{BUNDLED}:{DISPATCH}" in tasks:
        default, labels = DISPATCH_PROMPT, LABELS
    else:
        default, labels = default_system_prompt(None), LABELS
    return ClassifierPrompt(str(recipe.get("system_prompt") or default), labels, _examples(recipe, tasks))


def _examples(recipe: dict[str, Any], tasks: Sequence[str]) -> tuple[dict[str, str], ...]:
    """The worked examples that stood before each request in training."""
    if not recipe.get("shots") or not {"dispatch", f"{BUNDLED}:{DISPATCH}"} & set(tasks):
        return ()
    options = TaskOptions(**{f.name: recipe[f.name] for f in fields(TaskOptions) if f.name in recipe})
    try:
        rows = find_task(recipe["task"]).load(options)["train"]
    except SVFError as error:
        raise SVFError(f"the worked examples of the classifier (shots: {options.shots}): {error}") from error
    assert rows is not None
    return tuple(turn for turn in rows[0]["prompt"][:-1] if turn["role"] != "system")
