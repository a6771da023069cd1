"""Task `gsm8k`: grade-school maths in words.

Cobbe et al., "Training Verifiers to Solve Math Word Problems", arXiv 2110.14168; MIT licence.

- Hub: `openai/gsm8k`, configuration `main`
- files: `train.jsonl` (7473 rows), `test.jsonl` (1319 rows) of github.com/openai/grade-school-math
- split: even rows of the training file are for training (3737), odd rows for validation (3736), as in Transformer²;
  test 1319
- prompt: a system message that asks for the answer after `####`; the question is the user's turn
- answer: the worked solution, which ends `#### N`; graded by `numeric`
- target: the worked solution without its calculator annotations (`<<48/2=24>>`)
- metric: accuracy

Profile `reference`: the system message only says that an instruction follows, and `REFERENCE_STOP` applies.
"""

import re

from datasets import Dataset

from svf_rl.tasks.benchmark import alternate, choose_system_prompt, read_benchmark
from svf_rl.tasks.options import TaskOptions
from svf_rl.tasks.task import TRAINING_COLUMNS, Hub, Splits, Task, chat, check_texts, graded_by

HUB = Hub("openai/gsm8k", "main", folder="gsm8k")
SYSTEM_PROMPT = (
    "The instruction below describes a task: solve a maths problem. Write a response that reasons step by step and "
    "ends with a line that holds four hash signs and the answer as a number, like: #### 42"
)
REFERENCE_SYSTEM_PROMPT = "The instruction below describes a task. Write a response that completes what it asks for."


def read(options: TaskOptions) -> Splits:
    """`prompt`, `answer` and `target`."""
    splits, source = read_benchmark(options, HUB, ["train", "test"])
    system = choose_system_prompt(options, SYSTEM_PROMPT, REFERENCE_SYSTEM_PROMPT)
    train, test = (_conversations(splits[split], system, source) for split in ("train", "test"))
    return {**alternate(train), "test": test}


def _conversations(rows: Dataset, system: str, source: str) -> Dataset:
    check_texts(rows, ("question", "answer"), source)
    answers = rows["answer"][:]
    columns = {
        "prompt": [chat(question, system) for question in rows["question"]],
        "answer": answers,
        "target": [re.sub(r"<<.*?>>", "", answer) for answer in answers],
    }
    return Dataset.from_dict(columns)


TASK = Task("gsm8k", read, graded_by("numeric"), columns=TRAINING_COLUMNS, hub=HUB)
