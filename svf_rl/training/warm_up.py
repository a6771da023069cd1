"""What passes from a warm-up to the run that it was for."""

from dataclasses import dataclass, replace
from typing import Any

from peft import PeftModel

from svf_rl.generation import CompletionGenerator
from svf_rl.models.loading import load_adapted
from svf_rl.runs.summary import RunSummary
from svf_rl.settings.recipe import Recipe
from svf_rl.settings.warm_up import WARM_UP


@dataclass
class WarmUp:
    """
    The warm-up of a run.

    Args:
        recipe ([`Recipe`]): Of the warm-up.
        report ([`DryRun`]): Of it, too.
        summary ([`RunSummary`], *optional*): When it has ended.
        model, generator (*optional*): Those that it was made with, where that was in this process.
    """

    recipe: Recipe
    report: Any
    summary: RunSummary | None = None
    model: PeftModel | None = None
    generator: CompletionGenerator | None = None

    def leave(self, trainer: Any) -> None:
        """What the next run takes over: an engine takes long to start, and a second one may have no room."""
        self.model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        self.generator = trainer.generator

    def join(self, recipe: Recipe) -> tuple[PeftModel, CompletionGenerator | None]:
        """The model of the run of `recipe`, which has the values of the warm-up's adapter, and where its completions
        come from; no generator where the warm-up was made by an earlier process."""
        if self.model is None:
            adapter = replace(recipe.adapter, adapter_path=self.recipe.training.output_dir)
            return load_adapted(recipe.model, adapter), None
        return self.model, self.generator

    @property
    def outcome(self) -> dict[str, Any]:
        """For the summary of the run."""
        assert self.summary is not None
        return {"folder": WARM_UP, "updates": self.summary.updates, "accuracy": self.summary.accuracy}
