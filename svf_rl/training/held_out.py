"""Greedy evaluation on held-out items, during and after training."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather
from datasets import Dataset
from torch import Tensor
from transformers import Trainer, TrainerControl

from svf_rl.errors import SVFError
from svf_rl.generation import Completion
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.training.conversations import Conversations


class HeldOutEvaluation(Conversations):
    """The part of the trainer that evaluates. It replaces TRL's evaluation, which samples and computes a loss."""

    args: SVFReinforceConfig
    control: TrainerControl

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """
        Answer every held-out item greedily, through the generator of the rollouts, and score the answers.

        Returns:
            `dict`: under `{metric_key_prefix}_...`: `accuracy` (share of all items whose first reward is at least
            `correct_threshold`; an item that could not be scored counts as wrong and in `unscorable`), `reward`,
            `items`, `completion_length` in tokens, `clipped_ratio`, `time`, and for a mixture `accuracy/<task>`.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(dataset, Dataset) or len(dataset) == 0:
            raise SVFError("evaluation needs held-out items: give one Dataset with rows as eval_dataset")
        start, training = time.perf_counter(), self.model.training
        self.model.eval()
        self.sync_weights()
        items = held_out_share(dataset, self.accelerator.num_processes, self.accelerator.process_index)
        prompts = [item["prompt"] for item in items]
        ids, _, _ = self._tokenize_prompts(prompts)
        completions = self.generator.generate(
            ids,
            self.sampling.greedy(),
            [self.args.seed] * len(items),
            progress=not self.args.disable_tqdm and len(items) > 256,  # fewer are done before a bar is read
        )
        rewards = self._rewards_of(items, prompts, completions)[: len(dataset)]  # (N, functions)
        total = self._total_reward()[: len(dataset)]
        lengths = torch.tensor([[len(c.token_ids), not c.finished] for c in completions])
        lengths = gather(lengths.to(self.accelerator.device)).view(-1, 2)[: len(dataset)].float()
        unscorable = total.isnan()
        correct = (rewards[:, 0] >= self.args.correct_threshold).float()
        values = {
            "accuracy": correct.mean().item(),
            "reward": total.nanmean().item() if not unscorable.all() else 0.0,
            "unscorable": unscorable.float().mean().item(),
            "items": float(len(dataset)),
            "completion_length": lengths[:, 0].mean().item(),
            "clipped_ratio": lengths[:, 1].mean().item(),
            **_accuracy_by_task(dataset, correct.tolist()),
        }
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in values.items()}
        Trainer.log(self, {**metrics, f"time/{metric_key_prefix}": time.perf_counter() - start})
        # `eval` selects a checkpoint or stops a run; a report before or after the run does neither
        if metric_key_prefix == "eval":
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.model.train(training)
        return metrics

    def evaluate_saved(self, path: str, dataset: Dataset, metric_key_prefix: str = "test") -> dict[str, float]:
        """Evaluate the adapter saved in `path`, read back from disk; the adapter in training is left as it is."""
        model = self.accelerator.unwrap_model(self.model)
        active = model.active_adapter
        model.load_adapter(path, "saved", is_trainable=True)
        model.set_adapter("saved")
        try:
            return self.evaluate(dataset, metric_key_prefix=metric_key_prefix)
        finally:
            model.set_adapter(active)
            model.delete_adapter("saved")

    def _rewards_of(self, items: list[dict[str, Any]], prompts: list[Any], completions: Sequence[Completion]) -> Tensor:
        ids = [c.token_ids for c in completions]
        texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        conversational = isinstance(prompts[0], list)
        answers = [[{"role": "assistant", "content": text}] if conversational else text for text in texts]
        rewards = self._calculate_rewards(items, prompts, answers, ids)
        # what rewards log here (log_extra, log_metric) would come up among the rows of the next training batch
        self._pending_extra_logs.clear()
        self._pending_metrics.clear()
        return rewards


def _accuracy_by_task(dataset: Dataset, correct: Sequence[float]) -> dict[str, float]:
    """`accuracy/<task>` for the rows of a mixture, which name their task and their verifier."""
    if not {"task", "verifier"} <= set(dataset.column_names):
        return {}
    by_task: dict[str, list[float]] = {}
    for task, right in zip(dataset["task"], correct, strict=True):
        by_task.setdefault(f"accuracy/{task}", []).append(right)
    return {name: sum(rights) / len(rights) for name, rights in by_task.items()}


def held_out_share(dataset: Dataset, processes: int, index: int) -> list[dict[str, Any]]:
    """Process `index`'s items: equal counts a process, the dataset's own order when joined, the first items again at
    the end where it does not divide."""
    count = -(-len(dataset) // processes)
    return [dataset[i % len(dataset)] for i in range(index * count, (index + 1) * count)]
