"""What `svf_rl.evaluation` is asked for in a comparison."""

from collections.abc import Mapping
from typing import Any

from svf_rl.evaluation.arguments import EvaluationArguments
from svf_rl.tasks import TaskOptions


def evaluation_arguments(
    spec: Mapping[str, Any], task: str, options: Mapping[str, Any], out: str | None = None
) -> EvaluationArguments:
    """
    Greedy answers of the model of a cell to the items of a task.

    Args:
        spec (`Mapping`): of the cell; `model` holds the [`ModelArguments`], `evaluation` the [`EvaluationSettings`].
        task (`str`): the task, as in `quickstart:choice`.
        options (`Mapping`): the task's [`TaskOptions`].
        out (`str`, *optional*): where records go.
    """
    model, settings = spec["model"], spec["evaluation"]
    return EvaluationArguments(
        model=model["model_name_or_path"],
        tasks=[task],
        adapters=list(spec.get("adapters", {}).values()) if out is not None else [],
        options=TaskOptions(**options),
        reward=spec.get("reward"),
        out=out,
        max_tokens=spec.get("max_tokens"),
        dtype=model["dtype"],
        trust_remote_code=model["trust_remote_code"],
        chat_template_kwargs=dict(spec["chat_template_kwargs"]),
        **settings,
    )
