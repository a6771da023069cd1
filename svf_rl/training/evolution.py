"""`EvolutionTrainer`: evolution strategies, where the rewards of perturbed vectors take the place of a backward pass.

The population is answered in one batch of an engine that computes with the model's factors: a member is a row of its
table. The estimate of the gradient goes to the ordinary optimizer. So the trainer differs in who answers and in what is
made of the rewards, and in nothing else: prompts, optimizer, held-out evaluation and checkpoints are those of
[`SVFReinforceTrainer`].
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather
from torch import Tensor

from svf_rl.episodes.rollout import Rollout
from svf_rl.errors import SVFError
from svf_rl.generation import Completion, sample_seed
from svf_rl.generation.vllm.colocated import POLICY
from svf_rl.generation.weights import active_multipliers
from svf_rl.losses import evolution
from svf_rl.training.trainer import SVFReinforceTrainer


class EvolutionTrainer(SVFReinforceTrainer):
    """
    Trains the vectors of an SVF adapter by evolution strategies ([`svf_rl.losses.evolution`]).

    It takes the arguments of [`SVFReinforceTrainer`], with `SVFReinforceConfig(objective="evolution_strategies")`:
    `num_generations` is the population, of which each member answers each prompt once, `evolution_sigma` the size of
    the perturbations. No pass of the model is made in training, so that its memory is that of inference. Beside the
    metrics of rewards and completions there are `fitness/std`, `fitness/min` and `fitness/max` over the population, in
    units of the reward, and the logged loss is minus the mean reward.
    """

    generator: Any  # with `adapters`
    _name = "evolution strategies"
    _objective = "evolution_strategies"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.is_deepspeed_enabled:
            raise SVFError("objective: evolution_strategies has nothing for DeepSpeed to share out: use DDP")
        if getattr(self.generator, "adapters", None) is None:
            raise SVFError(
                "objective: evolution_strategies needs a generator with adapters, that of vllm_weights: shared"
            )
        self.sampling = replace(self.sampling, logprobs=False)
        self._trained = [p for p in self.accelerator.unwrap_model(self.model).parameters() if p.requires_grad]
        self._gradient, self._reward = torch.empty(0), 0.0  # of the step under way: (trained values,), and the mean

    def _perturbations(self) -> Iterator[Tensor]:
        """Those of the step under way, one for each pair, where the model is."""
        size, device = sum(p.numel() for p in self._trained), self._trained[0].device
        for pair in range(self.num_generations // 2):
            seed = sample_seed(self.args.seed, "perturbation", self.state.global_step, pair)
            yield evolution.perturbation(seed, size).to(device)

    @torch.no_grad()
    def _write_population(self) -> None:
        """Put each member into the engine's table; the trained values are afterwards what they were."""
        model = self.accelerator.unwrap_model(self.model)
        center = [p.detach().clone() for p in self._trained]
        try:
            for pair, eps in enumerate(self._perturbations()):
                for member, sigma in enumerate((self.args.evolution_sigma, -self.args.evolution_sigma), 2 * pair):
                    for p, start, part in zip(self._trained, center, self._parts(eps), strict=True):
                        torch.add(start, part, alpha=sigma, out=p)
                    self.generator.adapters.put(POLICY + 1 + member, active_multipliers(model))
        finally:
            for p, start in zip(self._trained, center, strict=True):
                p.copy_(start)

    def _parts(self, values: Tensor) -> list[Tensor]:
        """`values` (trained values,) in the shapes of the trained parameters."""
        parts = values.split([p.numel() for p in self._trained])
        return [part.view_as(p) for part, p in zip(parts, self._trained, strict=True)]

    def _roll_out(self, rows: list[dict[str, Any]]) -> Rollout:
        with self.recorder.timed("sync"):
            self._write_population()
        return super()._roll_out(rows)

    def _answer(
        self, first: int, prompts: list[list[int]], rows: Sequence[int], turn: int, room: int
    ) -> list[Completion]:
        """The completions of a prompt, which stand next to each other, are those of the members in order. A pair draws
        with the same seeds, so that both have the same luck."""
        places = [first + row for row in rows]
        adapters = [POLICY + 1 + place % self.num_generations for place in places]
        step = self.state.global_step
        seeds = [sample_seed(self.args.seed, "train", step, place // 2, turn) for place in places]
        return self.generator.generate(prompts, self.sampling.within(room), seeds, adapters=adapters)

    def _make_batch(self, rollout: Rollout, rewards: Tensor, total: Tensor) -> dict[str, Any]:
        """Estimates the gradient; of the batch only the number of rows is asked for."""
        if self.args.mask_truncated_completions:
            total = total.masked_fill(~gather(torch.tensor(rollout.finished, device=total.device)), torch.nan)
        fitness = evolution.member_fitness(total.view(-1, self.num_generations))
        shaped = evolution.shape_fitness(fitness, self.args.evolution_fitness)
        self._gradient = evolution.estimate_gradient(shaped, self._perturbations(), self.args.evolution_sigma)
        self._reward = total.nanmean().nan_to_num(0.0).item()
        known = fitness[~fitness.isnan()]
        if len(known):
            spread = {"std": known.std(correction=0), "min": known.min(), "max": known.max()}
            for name, value in spread.items():
                self.recorder.add(f"fitness/{name}", value.item())
        self.recorder.add_table(rollout, rewards, shaped.nan_to_num(0.0).repeat(len(total) // len(shaped)))
        return {"rows": torch.zeros(len(rollout.prompts), device=total.device)}

    def _loss_of(self, model: Any, batch: dict[str, Any]) -> Tensor:
        """A micro-batch's share of what has the estimate as its gradient, and minus the mean reward as its value. DDP
        sees no forward pass and leaves the gradient alone: it is the same in all processes."""
        linear = sum((p * g).sum() for p, g in zip(self._trained, self._parts(self._gradient), strict=True))
        return (linear - linear.detach() - self._reward) / self.args.gradient_accumulation_steps
