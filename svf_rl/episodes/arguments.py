"""What is said of tools and environments. Nothing slow is imported here."""

from dataclasses import dataclass

from svf_rl.described import described

BUILT_IN = {"python": "svf_rl.sandbox.python_tool:python"}
"""Tools that are named without a file."""


@dataclass(kw_only=True)
class ToolArguments:
    """What the model may call, and act in."""

    tools: list[str] | str | None = described(
        None,
        f"Functions that the model may call, such as my_tools.py:search, or by their names: {', '.join(BUILT_IN)} "
        "(runs a program in the sandbox).",
    )
    environment: str | dict[str, str] | None = described(
        None,
        "Class of the environment that the model acts in, such as my_env.py:Guess; or several by their names, of which "
        "the column environment names that of a row. Rewards are then those of rewards, and the environment's own.",
    )

    @property
    def tool_names(self) -> list[str]:
        return [self.tools] if isinstance(self.tools, str) else self.tools or []

    @property
    def runs_programs(self) -> bool:
        """Whether the model's programs run in the sandbox."""
        return "python" in self.tool_names
