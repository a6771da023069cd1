"""From completions to verdicts, by a verifier or by any reward function."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from svf_rl.episodes.environments import Environments
from svf_rl.episodes.rollout import Answer
from svf_rl.episodes.user_calls import start_coroutine
from svf_rl.rewards import Verdict, completion_text, load_reward
from svf_rl.rewards.registry import source_digest
from svf_rl.rewards.reward import AsyncReward
from svf_rl.rewards.verified import check_answers, parse_reference, verified, verify_rows
from svf_rl.rewards.verifier import Verifier, check_failed_share
from svf_rl.settings.rows import check_columns

# From this value on a completion counts as correct, where a reward says no more than a number.
CORRECT = 0.5


class Grader:
    """
    What decides whether a completion is right.

    Args:
        spec (`str` or mapping): a reward, as a recipe names it. A verifier's tells what it took for the answer and why
            it is wrong; any other counts as correct from 0.5 on, and `None` is not scorable.
        max_failed (`float`): the share of a batch whose checks may fail by themselves before the run stops.

    Raises:
        SVFError: there is no such reward, or an argument does not fit.
    """

    def __init__(self, spec: str | Mapping[str, Any], max_failed: float):
        self.reward = load_reward(spec)
        self._max_failed = float(self.reward.arguments.get("max_failed", max_failed))
        self._column = str(self.reward.arguments.get("column", "answer"))
        name = spec if isinstance(spec, str) else spec["name"]
        self._source = {"file_sha256": source_digest(self.reward.function)} if ":" in name else {}

    def describe(self) -> dict[str, Any]:
        """The reward's name and arguments, as they are compared with those of an earlier call; of a user's function
        what stands in its file, too."""
        return {"name": self.reward.__name__, **self.reward.arguments, **self._source}

    def reference(self, row: Mapping[str, Any]) -> Any:
        """The right answer of a row; `None` where there is none."""
        return parse_reference(row.get(self._column))

    def check(self, rows: Dataset, task: str) -> None:
        """Find out before anything is generated whether all rows can be graded; a verifier is also tried out on an
        empty completion, so that a missing sandbox is known now.

        Raises:
            SVFError: a column is missing, an answer is unusable, or the check cannot be made.
        """
        check_columns([self.reward], rows.column_names)
        check_answers(self.reward, {name: rows[name] for name in rows.column_names if name != "prompt"}, f"task {task}")
        if (tried := self._verify([rows[0]], [""])) is not None:
            check_failed_share(self.reward.__name__, tried, 0.0, None)

    def grade(
        self,
        rows: Sequence[Mapping[str, Any]],
        completions: Sequence[Answer],
        token_ids: Sequence[list[int]],
        environments: Environments | None = None,
    ) -> list[Verdict]:
        """One verdict a completion: a text, or the messages of an episode, of which verifiers read the last. Raises
        `SVFError` when too many checks failed by themselves."""
        verdicts = self._verify(rows, [completion_text(completion) for completion in completions])
        if verdicts is None:
            return self._call(rows, completions, token_ids, environments)
        check_failed_share(self.reward.__name__, verdicts, self._max_failed, None)
        return verdicts

    def _verify(self, rows: Sequence[Mapping[str, Any]], completions: Sequence[str]) -> list[Verdict] | None:
        """By the reward's verifier, or by the one that each row names; `None` for a reward without verifiers."""
        arguments, options = self.reward.arguments, {}
        verifier: Verifier | None = getattr(self.reward.function, "verifier", None)
        if verifier is not None:
            names = [verifier.name] * len(rows)
            options = {name: value for name, value in arguments.items() if name in verifier.options}
        elif self.reward.function is verified:
            names = [row[arguments.get("verifier_column", "verifier")] for row in rows]
        else:
            return None
        return verify_rows(names, completions, [self.reference(row) for row in rows], **options)

    def _call(
        self,
        rows: Sequence[Mapping[str, Any]],
        completions: Sequence[Answer],
        token_ids: Sequence[list[int]],
        environments: Environments | None,
    ) -> list[Verdict]:
        """A reward function, called as the trainer calls it."""
        columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
        if environments is not None and environments.current is not None:
            columns["environments"] = environments.current
        values = self.reward(
            completions=[
                [{"role": "assistant", "content": one}] if isinstance(one, str) else one for one in completions
            ],
            prompts=[row["prompt"] for row in rows],
            completion_ids=list(token_ids),
            trainer_state=None,
            log_extra=lambda column, values: None,
            log_metric=lambda name, value: None,
            **columns,
        )
        if isinstance(self.reward, AsyncReward):
            awaited = start_coroutine(values)  # type: ignore[arg-type]
            try:
                values = awaited.result()
            finally:
                awaited.cancel()
        return [_verdict_of("the reward", value) for value in values]


class EnvironmentGrader(Grader):
    """The `get_reward` of each item's environment decides."""

    def __init__(self) -> None:
        self._column = "answer"

    def describe(self) -> dict[str, Any]:
        return {"name": "get_reward"}

    def check(self, rows: Dataset, task: str) -> None:
        """Nothing is known before an episode."""

    def grade(
        self,
        rows: Sequence[Mapping[str, Any]],
        completions: Sequence[Answer],
        token_ids: Sequence[list[int]],
        environments: Environments | None = None,
    ) -> list[Verdict]:
        assert environments is not None
        assert environments.current is not None
        given = [reward(environments.current) for reward in environments.rewards()]  # one a class of environments
        values = [next((value for value in of_one if value is not None), None) for of_one in zip(*given, strict=True)]
        return [_verdict_of("its environment", value) for value in values]


class Ungraded(Grader):
    """For prompts without an answer: no completion gets a verdict."""

    def __init__(self) -> None:
        pass

    def describe(self) -> dict[str, Any]:
        return {}

    def reference(self, row: Mapping[str, Any]) -> Any:
        return None

    def grade(
        self,
        rows: Sequence[Mapping[str, Any]],
        completions: Sequence[Answer],
        token_ids: Sequence[list[int]],
        environments: Environments | None = None,
    ) -> list[Verdict]:
        return [Verdict(None, None, "a prompt without an answer to compare with")] * len(rows)


def _verdict_of(who: str, value: float | None) -> Verdict:
    if value is None:
        return Verdict(None, None, f"{who} gave None")
    return Verdict(value >= CORRECT, None, f"{who} gave {value:g}", score=value)
