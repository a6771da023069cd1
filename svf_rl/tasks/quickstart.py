"""Task `quickstart`: the small skills of the bundled model, generated from a fixed seed.

`skill: math`, `choice` or `code` answers questions; `skill: dispatch` says to which of them a question belongs;
`skill: tools` takes the model `quickstart-tools` and the calculator `svf_rl.quickstart.tool_skill:calc`.
"""

from datasets import Dataset

from svf_rl.errors import SVFError
from svf_rl.quickstart import SKILLS, make_rows
from svf_rl.quickstart.dispatch_skill import DISPATCH, DISPATCH_PROMPT
from svf_rl.quickstart.tool_skill import TOOLS
from svf_rl.tasks.options import TaskOptions
from svf_rl.tasks.task import RewardSpec, Splits, Task, chat

READS = frozenset({"skill", "wording"})
ITEMS = {"train": 2048, "validation": 128, "test": 512}


def read(options: TaskOptions) -> Splits:
    """`prompt`, `answer`, `target`, `skill`, and for the skill `code` also `tests`. No problem is in two splits."""
    asked = DISPATCH_PROMPT if options.skill == DISPATCH else None
    system = asked if options.system_prompt is None else options.system_prompt
    splits: Splits = {}
    for split, default in ITEMS.items():
        items = getattr(options, f"{split}_items")
        if items is not None and split == "train":
            items += options.shots  # which are taken off
        rows = make_rows(options.skill, split, default if items is None else items, wording=options.wording)
        splits[split] = Dataset.from_list([{**row, "prompt": chat(row["prompt"], system)} for row in rows])
    return splits


def rewards(options: TaskOptions) -> tuple[RewardSpec, ...]:
    if options.skill == DISPATCH:
        return ("dispatch_label",)
    skills = {**SKILLS, TOOLS.name: TOOLS}
    if options.skill not in skills:
        raise SVFError(f"unknown quickstart skill {options.skill!r}: use one of {', '.join(skills)}, {DISPATCH}")
    return (skills[options.skill].reward,)


TASK = Task("quickstart", read, rewards, is_local=lambda options: True, max_tokens=48, reads=READS)
