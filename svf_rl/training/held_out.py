"""Greedy evaluation on held-out items, during and after training."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather
from datasets import Dataset
from torch import Tensor
from transformers import Trainer

from svf_rl.episodes.random_state import own_random_numbers
from svf_rl.errors import SVFError
from svf_rl.generation import Completion
from svf_rl.losses.objective import total_reward

if TYPE_CHECKING:
    from svf_rl.training.trainer import SVFReinforceTrainer


class HeldOutEvaluator:
    """Answers items with the generator of a trainer, and scores the answers by its rewards."""

    def __init__(self, trainer: "SVFReinforceTrainer") -> None:
        self._trainer = trainer

    def evaluate(self, dataset: Dataset | dict[str, Dataset], prefix: str = "eval") -> dict[str, float]:
        """
        Answer every item greedily and score the answers. All processes call it together.

        Args:
            dataset (`Dataset` or `dict[str, Dataset]`): The items, with a column `prompt` and those that the rewards
                read; or several sets by name, each with metrics `{prefix}_{name}_...`, and as `{prefix}_accuracy` the
                mean of theirs.
            prefix (`str`): Of the metrics' names.

        Returns:
            `dict`: under `{prefix}_...`: `accuracy` (share of all items whose first reward, or where only environments
            give any that of its own, is at least `correct_threshold`; an item that could not be scored counts as wrong
            and in `unscorable`), `reward`, `items`, `completion_length` in tokens, `clipped_ratio`, and for a mixture
            `accuracy/<task>`. They are logged too, with the seconds as `time/{prefix}`.

        Raises:
            SVFError: there is no item.
        """
        if isinstance(dataset, dict) and dataset:
            return self._evaluate_sets(dataset, prefix)
        if not isinstance(dataset, Dataset) or len(dataset) == 0:
            raise SVFError("evaluation needs held-out items: give one Dataset with rows as eval_dataset")
        trainer, args = self._trainer, self._trainer.args
        start, training = time.perf_counter(), trainer.model.training
        trainer.model.eval()
        trainer.recorder.start_reporters()
        trainer.sync_weights()
        # equal counts a process, in the dataset's order when joined; the first items again where it does not divide
        count = -(-len(dataset) // trainer.accelerator.num_processes)
        first = trainer.accelerator.process_index * count
        items = [dataset[i % len(dataset)] for i in range(first, first + count)]
        # what tools and environments draw is the same in each evaluation, and moves no draw of the training
        draws = own_random_numbers(args.seed + args.process_index) if trainer.acts else nullcontext()
        with draws:
            rewards, lengths = self._answered(items)
        rewards = rewards[: len(dataset)]  # (items, functions)
        total = total_reward(rewards, trainer.reward_weights)
        lengths = gather(lengths.to(trainer.accelerator.device)).view(-1, 2)[: len(dataset)].float()
        unscorable = total.isnan()
        correct = (trainer.deciding(rewards, total) >= args.correct_threshold).float()
        values = {
            "accuracy": correct.mean().item(),
            "reward": total.nanmean().item() if not unscorable.all() else 0.0,
            "unscorable": unscorable.float().mean().item(),
            "items": float(len(dataset)),
            "completion_length": lengths[:, 0].mean().item(),
            "clipped_ratio": lengths[:, 1].mean().item(),
            **_accuracy_by_task(dataset, correct.tolist()),
        }
        metrics = {f"{prefix}_{key}": value for key, value in values.items()}
        # not TRL's, which adds what training logs
        Trainer.log(trainer, {**metrics, f"time/{prefix}": time.perf_counter() - start})
        trainer.model.train(training)
        return metrics

    def _answered(self, items: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        """`(items of all processes, functions)` rewards of greedy answers, and of this process `(items, 2)` lengths and
        whether they were cut off. Of environments there are no more at a time than in training."""
        trainer = self._trainer
        size = len(items)
        if trainer.environment_factories is not None:
            size = trainer.args.per_device_train_batch_size * trainer.args.steps_per_generation
        rewards, lengths = [], []
        for start in range(0, len(items), size):
            part = items[start : start + size]
            rollout = trainer.episodes.play(part, self._answer)
            rewards.append(trainer.score(part, rollout).view(trainer.accelerator.num_processes, len(part), -1))
            lengths += [[n, not finished] for n, finished in zip(rollout.lengths, rollout.finished, strict=True)]
            trainer.recorder.drop_reward_logs()
        return torch.cat(rewards, 1).flatten(0, 1), torch.tensor(lengths)

    def _answer(self, prompts: list[list[int]], rows: Sequence[int], turn: int, room: int) -> list[Completion]:
        trainer = self._trainer
        return trainer.generator.generate(
            prompts,
            trainer.sampling.greedy().within(room),
            [trainer.args.seed] * len(prompts),
            progress=not trainer.args.disable_tqdm and len(prompts) > 256,  # fewer are done before a bar is read
        )

    def _evaluate_sets(self, sets: dict[str, Dataset], prefix: str) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for name, rows in sets.items():
            metrics |= self.evaluate(rows, f"{prefix}_{name}")
        mean = {f"{prefix}_accuracy": sum(metrics[f"{prefix}_{name}_accuracy"] for name in sets) / len(sets)}
        Trainer.log(self._trainer, mean)
        return metrics | mean

    def evaluate_saved(self, path: str, dataset: Dataset) -> dict[str, float]:
        """Evaluate the adapter saved in `path`, read back from disk; the adapter in training is left as it is."""
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        active = model.active_adapter
        model.load_adapter(path, "saved", is_trainable=True)
        model.set_adapter("saved")
        try:
            return self.evaluate(dataset, "test")
        finally:
            model.set_adapter(active)
            model.delete_adapter("saved")


def _accuracy_by_task(dataset: Dataset, correct: Sequence[float]) -> dict[str, float]:
    """`accuracy/<task>` for the rows of a mixture, which name their task and their verifier."""
    if not {"task", "verifier"} <= set(dataset.column_names):
        return {}
    by_task: dict[str, list[float]] = {}
    for task, right in zip(dataset["task"], correct, strict=True):
        by_task.setdefault(f"accuracy/{task}", []).append(right)
    return {name: sum(rights) / len(rights) for name, rights in by_task.items()}
