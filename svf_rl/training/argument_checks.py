"""What the trainer is given: refused by name where it cannot be used, before TRL's constructor takes it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import ProcessorMixin

from svf_rl.errors import SVFError
from svf_rl.models.base import ModelArguments
from svf_rl.rewards.reward import Reward
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.settings.rows import check_columns


def check_arguments(
    model: Any,
    rewards: Sequence[Any],
    train_dataset: Any,
    eval_dataset: Any,
    processing_class: Any,
    peft_config: Any,
    acts_in_environment: bool,
    columns_are_known: bool = True,
) -> None:
    """Raises `SVFError`, naming the argument and what to do, for one of the trainer that it cannot use. Where it
    `acts_in_environment`, prompts and rewards may come from there; the columns that rewards need are looked for where
    they are known, as nothing else brings any."""
    if not acts_in_environment and not rewards:
        raise SVFError("reward_funcs is empty: give at least one reward, such as load_reward('exact_match')")
    if isinstance(processing_class, ProcessorMixin):
        raise SVFError("processing_class is a processor, and images are not supported: give processor.tokenizer")
    if peft_config is not None and not isinstance(peft_config, PeftConfig):
        raise SVFError(f"peft_config must be a SVFConfig or another PeftConfig, not {type(peft_config).__name__}")
    if isinstance(model, PeftModel):
        if peft_config is not None:
            raise SVFError("the model has an adapter already: leave peft_config out, or give the model without it")
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise SVFError(
                "nothing of the model's adapter is trained: load it with "
                "PeftModel.from_pretrained(..., is_trainable=True)"
            )
    elif peft_config is None:
        raise SVFError("the trainer trains adapters: pass peft_config=SVFConfig(), or a model that has an adapter")
    asked = [reward for reward in rewards if isinstance(reward, Reward)] if columns_are_known else []
    if train_dataset is not None:
        _check_rows("train_dataset", train_dataset, asked, acts_in_environment)
    elif not acts_in_environment:
        raise SVFError("train_dataset is missing: give a Dataset with a column prompt")
    if isinstance(eval_dataset, dict):
        if not eval_dataset:
            raise SVFError("eval_dataset is an empty dict: leave it out, or give at least one Dataset")
        for name, rows in eval_dataset.items():
            _check_rows(f"eval_dataset[{name!r}]", rows, asked, acts_in_environment)
    elif eval_dataset is not None:
        _check_rows("eval_dataset", eval_dataset, asked, acts_in_environment)


def _check_rows(name: str, rows: Any, rewards: Sequence[Reward], acts_in_environment: bool) -> None:
    if isinstance(rows, IterableDataset):
        raise SVFError(
            f"{name} is an IterableDataset, which has no order to resume in: give Dataset.from_list(list(it))"
        )
    if not isinstance(rows, Dataset):
        raise SVFError(f"{name} must be a Dataset, not {type(rows).__name__}: see Dataset.from_list")
    if "prompt" not in rows.column_names and not acts_in_environment:
        raise SVFError(f"{name} has no column 'prompt'; it has: {', '.join(rows.column_names) or 'none'}")
    if len(rows) == 0:
        raise SVFError(f"{name} has no rows")
    try:
        check_columns(rewards, rows.column_names)
    except SVFError as error:
        raise SVFError(f"{name}: {error}") from error


def own_model(model: Any) -> Any:
    """What transformers loads, or the model that is given. Raises `SVFError` for what is neither."""
    if isinstance(model, str | os.PathLike):
        folder = Path(model)
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            raise SVFError(
                f"{model} is an adapter and not a model: give PeftModel.from_pretrained(base, {str(model)!r}, "
                "is_trainable=True)"
            )
        return ModelArguments(model_name_or_path=os.fspath(model)).location
    if not isinstance(model, nn.Module):
        raise SVFError(f"model must be a name, a folder or a loaded model, not {type(model).__name__}")
    return model


_TRAINERS = {
    "policy_gradient": "SVFReinforceTrainer", "next_token": "NextTokenTrainer",
    "evolution_strategies": "EvolutionTrainer",
}  # fmt: skip


def check_trainer(trainer: str, objective: str, args: SVFReinforceConfig) -> None:
    """Raises `SVFError` where the settings are of another objective than the `trainer` of that class has."""
    if args.objective != objective:
        raise SVFError(
            f"{trainer} trains by objective {objective}, and args.objective is {args.objective}: that is "
            f"{_TRAINERS[args.objective]}'s"
        )


def own_settings(model: Any, args: Any) -> SVFReinforceConfig:
    """`args`, or the defaults with an output folder of the model's name. Raises `SVFError` for those of another
    trainer, whose options and defaults differ."""
    if args is None:
        name = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "") or "model"
        return SVFReinforceConfig(output_dir=f"{name.rstrip('/').rpartition('/')[2]}-SVF")
    if not isinstance(args, SVFReinforceConfig):
        raise SVFError(
            f"args is a {type(args).__name__}: give a SVFReinforceConfig (svf_rl.settings.config) with the same "
            "settings, without those of another objective"
        )
    return args
