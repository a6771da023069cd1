"""What the page on the comparison says of the answers that are committed with it."""

import re
from collections import Counter
from pathlib import Path

from generate.comparison import COMPARISONS, comparison, read

from svf_rl.metrics.statistics import paired_t
from svf_rl.reproduce.raw import decode
from svf_rl.tasks import TaskOptions, find_task

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "comparison.md"

# as recipes/smollm2.yaml and recipes/reproduce/smollm2.yaml have it
REVERSAL = TaskOptions(
    dataset="word_sequence_reversal", config={"min_words": 2, "max_words": 3}, shots=2, train_items=1024,
    validation_items=64,
)  # fmt: skip
SORTING = TaskOptions(
    dataset="word_sorting", config={"min_words": 2, "max_words": 2}, shots=2, train_items=1024, validation_items=64
)


def test_sorting_ends_at_giving_the_words_as_they_stand():
    rows = find_task("reasoning_gym").load(SORTING)["test"]
    assert rows is not None
    stand = [row["prompt"][-1]["content"].strip().rpartition(": ")[2] == row["answer"] for row in rows]
    assert (len(stand), sum(stand)) == (512, 243)
    answers = read("smollm2")["evaluations"]["sorting"]
    alike = {
        run: sum(stand[item] == verdict for item, (verdict,) in decode(lines).items()) for run, lines in answers.items()
    }
    assert alike.pop("base") == 453
    assert min(alike.values()) >= 510, alike


def test_of_five_runs_of_svf_one_reverses_two_words_alone():
    rows = find_task("reasoning_gym").load(REVERSAL)["test"]
    assert rows is not None
    words = [answer.count(",") + 1 for answer in rows["answer"]]
    shares: dict[str, dict[int, float]] = {"svf": {}, "lora": {}}
    for method, of_three in shares.items():
        for seed in range(5):
            verdicts = decode(read("smollm2")["evaluations"]["reversal"][f"reversal-{method}-seed{seed}"])
            right = Counter(words[item] for item, (verdict,) in verdicts.items() if verdict)
            assert right[2] / words.count(2) > 0.93
            of_three[seed] = right[3] / words.count(3)
    assert shares["svf"].pop(4) == 0
    low, high = zip(*((min(of.values()), max(of.values())) for of in shares.values()), strict=True)
    assert [round(100 * share) for share in (*low, *high)] == [88, 67, 96, 94]


def test_with_the_half_way_run_among_them_no_way_would_be_told_from_svf():
    answers = read("smollm2")["evaluations"]["reversal"]

    def accuracy(method: str, seed: int) -> float:
        verdicts = decode(answers[f"reversal-{method}-seed{seed}"]).values()
        return sum(verdict for (verdict,) in verdicts if verdict) / len(verdicts)

    found = [
        paired_t([accuracy(method, seed) - accuracy("svf", 4 if seed == left_out else seed) for seed in range(3)])
        for method in ("projected-13", "evolution-strategies", "all-of-the-MLPs")
        for left_out in range(3)
    ]
    assert 0.07 < min(found) < 0.08


def test_every_figure_of_the_page_is_in_its_tables():
    """Those with a decimal: what the page says changes with what joins the file."""
    text = PAGE.read_text(encoding="utf-8")
    said = set(re.findall(r"\d+\.\d+", text.partition("## What")[2].partition("## A skill that is none")[0]))
    assert len(said) > 20
    assert said - set(re.findall(r"\d+\.\d+", comparison("smollm2"))) == set()


def test_the_file_is_small_enough_to_be_kept():
    assert all(path.stat().st_size <= 5e6 for path in COMPARISONS.glob("*.json"))
