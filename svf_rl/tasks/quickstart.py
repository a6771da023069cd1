"""Task `quickstart`: the small skills of the bundled model, made on the spot from a fixed seed.

`skill: math`, `choice` or `code` answers questions; `skill: dispatch` says which of them a question is of.
"""

from datasets import Dataset

from svf_rl.errors import SVFError
from svf_rl.quickstart import SKILLS, make_rows
from svf_rl.quickstart.dispatch_skill import DISPATCH, DISPATCH_PROMPT
from svf_rl.tasks.options import TaskOptions
from svf_rl.tasks.task import RewardSpec, Splits, Task, chat, limit_rows

TRAIN_ITEMS, VALIDATION_ITEMS, TEST_ITEMS = 2048, 128, 512


def load(options: TaskOptions) -> Splits:
    """`prompt`, `answer`, `target`, `skill`, and for the skill `code` also `tests`. No problem is in two splits."""
    return {
        "train": _rows(options, "train", options.train_items, TRAIN_ITEMS),
        "validation": _rows(options, "validation", options.validation_items, VALIDATION_ITEMS),
        "test": _rows(options, "test", options.test_items, TEST_ITEMS),
    }


def _rows(options: TaskOptions, split: str, items: int | None, default: int) -> Dataset:
    rows = make_rows(options.skill, split, default if items is None else items, wording=options.wording)
    asked = DISPATCH_PROMPT if options.skill == DISPATCH else None
    system = asked if options.system_prompt is None else options.system_prompt
    for row in rows:
        row["prompt"] = chat(row["prompt"], system)
    return limit_rows(split, Dataset.from_list(rows), items)


def rewards(options: TaskOptions) -> tuple[RewardSpec, ...]:
    if options.skill == DISPATCH:
        return ("dispatch_label",)
    if options.skill not in SKILLS:
        raise SVFError(f"unknown quickstart skill {options.skill!r}: use one of {', '.join(SKILLS)}, {DISPATCH}")
    return (SKILLS[options.skill].reward,)


TASK = Task("quickstart", load, rewards, is_local=lambda options: True, max_tokens=48)
