"""What the trainer writes beside an adapter, and what it sends to the Hub."""

from pathlib import Path
from typing import Any

from trl import GRPOTrainer

from svf_rl.runs.hub import hub_errors
from svf_rl.runs.model_card import write_model_card
from svf_rl.runs.summary import RunSummary
from svf_rl.settings.config import SVFReinforceConfig


class Publication(GRPOTrainer):
    """The part of the trainer that saves and publishes: our model card in place of PEFT's and TRL's, and one line for
    what goes wrong on the Hub."""

    args: SVFReinforceConfig
    run_summary: RunSummary
    """What the card is written from: the recipe, and after the run its accuracies."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        write_model_card(Path(output_dir or self.args.output_dir), self.run_summary)  # over PEFT's

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Our card in the output folder, in place of TRL's; before the first adapter there is none."""
        folder = Path(self.args.output_dir)
        if self.is_world_process_zero() and (folder / "adapter_config.json").is_file():
            write_model_card(folder, self.run_summary)

    def init_hf_repo(self, token: str | None = None) -> None:
        with hub_errors(self._hub_name, token or self.args.hub_token):
            super().init_hf_repo(token)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        with hub_errors(self._hub_name, kwargs.get("token") or self.args.hub_token):
            return super().push_to_hub(*args, **kwargs)

    @property
    def _hub_name(self) -> str:
        return self.args.hub_model_id or Path(self.args.output_dir).absolute().name
