"""Task `gsm8k`: grade-school maths in words, graded by the number after `####`.

Cobbe et al., "Training Verifiers to Solve Math Word Problems", arXiv 2110.14168. The split is that of Transformer²:
the training file's even rows train, its odd rows validate, and the 1319 test rows test.
"""

from pathlib import Path

from datasets import Dataset

from svf_rl.errors import SVFError
from svf_rl.tasks.files import read_folder, read_hub
from svf_rl.tasks.options import TaskOptions
from svf_rl.tasks.task import RewardSpec, Splits, Task, chat, check_has_columns, limited

HUB_NAME, HUB_CONFIG = "openai/gsm8k", "main"
SYSTEM_PROMPT = (
    "The instruction below describes a task: solve a maths problem. Write a response that reasons step by step and "
    "ends with a line that holds four hash signs and the answer as a number, like: #### 42"
)


def load(options: TaskOptions) -> Splits:
    """`prompt` and `answer`, the worked solution that ends `#### N`.

    Reads `train.jsonl` and `test.jsonl` of `data_path`, or the Hub without it.
    """
    if options.data_path is not None:
        source = options.data_path
        files = read_folder(Path(options.data_path))
    else:
        source = options.dataset_name or HUB_NAME
        files = read_hub(source, options.dataset_config or HUB_CONFIG)
    if "test" not in files:
        raise SVFError(f"{source} has no test rows: GSM8K needs train and test files")
    system = SYSTEM_PROMPT if options.system_prompt is None else options.system_prompt
    train, test = (_conversations(files[split], system, source) for split in ("train", "test"))
    even, odd = (train.select(range(start, len(train), 2)) for start in (0, 1))
    return {
        "train": limited("train", even, options.train_items),
        "validation": limited("validation", odd, options.validation_items),
        "test": limited("test", test, options.test_items),
    }


def _conversations(rows: Dataset, system: str, source: str) -> Dataset:
    check_has_columns(rows, ("question", "answer"), source)
    return Dataset.from_dict(
        {"prompt": [chat(question, system) for question in rows["question"]], "answer": rows["answer"][:]}
    )


def rewards(options: TaskOptions) -> tuple[RewardSpec, ...]:
    return ({"name": "numeric"},)


TASK = Task(
    "gsm8k",
    load,
    rewards,
    is_local=lambda options: options.data_path is not None,
    columns=frozenset({"prompt", "answer"}),
)
