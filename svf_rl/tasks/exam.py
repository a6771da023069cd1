"""Task `exam`: the three skills of the quickstart in one test, for which no expert was trained.

- data: generated, with another seed than the rows of the task `quickstart`, from the problems of the same splits: no
  expert was trained on any of the problems
- split: 256 validation rows (labelled prompts to adapt with), 512 test rows; none to train on
- prompt: only the question; the skills take turns. `wording: reworded` asks in sentences that the bundled model was
  not trained on
- answer: `answer`, with `task` (the skill of the question) and `verifier`; graded by `verified`
- metric: accuracy, and that of each skill
"""

from datasets import Dataset

from svf_rl.quickstart import SKILLS, make_rows
from svf_rl.tasks.options import TaskOptions
from svf_rl.tasks.task import Splits, Task, chat, graded_by

ITEMS = {"validation": 256, "test": 512}
# The quickstart's own rows have seed 0.
ROWS_SEED = 20


def read(options: TaskOptions) -> Splits:
    """`prompt`, `answer`, `task`, `verifier`; no training rows."""
    splits: Splits = {}
    for split, default in ITEMS.items():
        items = getattr(options, f"{split}_items")
        count = default if items is None else items
        each = -(-count // len(SKILLS))
        parts = [make_rows(skill, split, each, seed=ROWS_SEED, wording=options.wording) for skill in SKILLS]
        rows = [
            {
                "prompt": chat(row["prompt"], options.system_prompt),
                "answer": row["answer"],
                "task": f"quickstart:{row['skill']}",
                "verifier": SKILLS[row["skill"]].reward,
            }
            for turn in zip(*parts, strict=True)
            for row in turn
        ]
        splits[split] = Dataset.from_list(rows[:count])
    return splits


TASK = Task(
    "exam",
    read,
    graded_by("verified"),
    is_local=lambda options: True,
    columns=frozenset({"prompt", "answer", "task", "verifier"}),
    max_tokens=48,
    trainable=False,
    reads=frozenset({"wording"}),
)
