"""From completions to verdicts, by a verifier or by any reward function."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from svf_rl.rewards import Verdict, load_reward
from svf_rl.rewards.reward import AsyncReward
from svf_rl.rewards.verified import check_answers, parse_reference, verified, verify_rows
from svf_rl.rewards.verifier import Verifier, check_failed_share
from svf_rl.settings.dry_run import check_columns
from svf_rl.storage.json_files import normalize_json

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
        self._verifier: Verifier | None = getattr(self.reward.function, "verifier", None)
        self._max_failed = float(self.reward.arguments.get("max_failed", max_failed))
        self._column = str(self.reward.arguments.get("column", "answer"))
        self._verifier_column = str(self.reward.arguments.get("verifier_column", "verifier"))

    def describe(self) -> dict[str, Any]:
        """The reward's name and arguments, as they are compared with those of an earlier call."""
        return {"name": self.reward.__name__, **self.reward.arguments}

    def reference(self, row: Mapping[str, Any]) -> Any:
        """The right answer of a row; `None` where there is none."""
        return parse_reference(row.get(self._column))

    def same_reference(self, recorded: Any, row: Mapping[str, Any]) -> bool:
        """Whether a record's reference is that of the row, both as JSON holds them."""
        return recorded == normalize_json(self.reference(row))

    def check(self, rows: Dataset, task: str) -> None:
        """Find out before anything is generated whether all rows can be graded; a verifier is also tried out on an
        empty completion, so that a missing sandbox is known now.

        Raises:
            SVFError: a column is missing, an answer is unusable, or the check cannot be made.
        """
        check_columns([self.reward], rows.column_names)
        check_answers(self.reward, {name: rows[name] for name in rows.column_names if name != "prompt"}, f"task {task}")
        if self._has_verifiers:
            self._stop_where_checks_fail(self._verify([rows[0]], [""]), most=0.0)

    def grade(
        self, rows: Sequence[Mapping[str, Any]], completions: Sequence[str], token_ids: Sequence[list[int]]
    ) -> list[Verdict]:
        """One verdict a completion. Raises `SVFError` when too many checks failed by themselves."""
        if not self._has_verifiers:
            return self._call(rows, completions, token_ids)
        verdicts = self._verify(rows, completions)
        self._stop_where_checks_fail(verdicts, self._max_failed)
        return verdicts

    @property
    def _has_verifiers(self) -> bool:
        return self._verifier is not None or self.reward.function is verified

    def _verify(self, rows: Sequence[Mapping[str, Any]], completions: Sequence[str]) -> list[Verdict]:
        """By the reward's verifier, or by the one that each row names."""
        options: dict[str, Any] = {}
        if self._verifier is not None:
            options = {k: v for k, v in self.reward.arguments.items() if k in self._verifier.options}
        names = [self._verifier.name if self._verifier else str(row[self._verifier_column]) for row in rows]
        return verify_rows(names, completions, [self.reference(row) for row in rows], **options)

    def _call(
        self, rows: Sequence[Mapping[str, Any]], completions: Sequence[str], token_ids: Sequence[list[int]]
    ) -> list[Verdict]:
        """A reward function, called as the trainer calls it."""
        columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
        values = self.reward(
            completions=[[{"role": "assistant", "content": text}] for text in completions],
            prompts=[row["prompt"] for row in rows],
            completion_ids=list(token_ids),
            trainer_state=None,
            log_extra=lambda column, values: None,
            log_metric=lambda name, value: None,
            **columns,
        )
        if isinstance(self.reward, AsyncReward):
            values = asyncio.run(values)  # type: ignore[arg-type]
        return [_verdict(value) for value in values]

    def _stop_where_checks_fail(self, verdicts: Sequence[Verdict], most: float) -> None:
        check_failed_share(self.reward.__name__, verdicts, most, None)


class Ungraded(Grader):
    """For prompts without an answer: no completion gets a verdict."""

    def __init__(self) -> None:
        pass

    def describe(self) -> dict[str, Any]:
        return {}

    def reference(self, row: Mapping[str, Any]) -> Any:
        return None

    def grade(
        self, rows: Sequence[Mapping[str, Any]], completions: Sequence[str], token_ids: Sequence[list[int]]
    ) -> list[Verdict]:
        return [Verdict(None, None, "a prompt without an answer to compare with")] * len(rows)


def _verdict(value: float | None) -> Verdict:
    if value is None:
        return Verdict(None, None, "the reward gave None")
    return Verdict(value >= CORRECT, None, f"the reward gave {value:g}", score=value)
