"""The answers that a run paid most often: one answer that is paid far more often than it is asked for is a hack."""

from collections import Counter
from itertools import chain

from svf_rl.markdown import markdown_table
from svf_rl.report.samples import read_completions
from svf_rl.runs.run_folder import RunFolder

_MOST = 10


def tabulate_rewarded_answers(run: RunFolder) -> str:
    """The most frequent rewarded answers, how often each was paid, and in how many steps; empty where the run kept no
    answers of its completions (`log_completions: true`)."""
    paid: Counter[tuple[str, str]] = Counter()
    steps: dict[tuple[str, str], set[int]] = {}
    columns = ["step", *run.rewards, *(f"{name}/answer" for name in run.rewards)]
    for row in chain.from_iterable(read_completions(run, columns)):
        for name in run.rewards:
            answer, reward = row.get(f"{name}/answer"), row.get(name)
            if answer is not None and reward is not None and reward >= run.correct_threshold:
                paid[name, answer] += 1
                steps.setdefault((name, answer), set()).add(row["step"])
    totals = Counter({name: sum(n for (other, _), n in paid.items() if other == name) for name in run.rewards})
    rows = [
        [name, answer, f"{count} of {totals[name]}", f"{count / totals[name]:.3f}", len(steps[name, answer])]
        for (name, answer), count in sorted(paid.items(), key=lambda item: (-item[1], item[0]))[:_MOST]
    ]
    return markdown_table(["reward", "answer", "paid", "share", "steps"], rows)
