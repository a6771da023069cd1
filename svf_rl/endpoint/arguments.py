"""What an endpoint is asked for. Nothing slow is imported here."""

from dataclasses import dataclass

from svf_rl.described import described


@dataclass
class EndpointArguments:
    """What an endpoint serves beside its experts."""

    classifier: str | None = described(
        None, "A trained dispatch expert, which chooses for auto (default: the base model does)."
    )
    classifier_prompt: str | None = described(
        None, "System message that asks for the class (default: the classifier's own)."
    )
    adapters: str | None = described(None, "Folder from which adapters may be loaded while the server runs.")
    max_length: int | None = described(None, "Longest prompt and answer, in tokens (default: the model's).")
