"""Answers and runs of a comparison that never ran."""

ITEMS, SEEDS = 100, [0, 1, 2]


def answers(right):
    """Of so many items right, the first ones."""
    return {item: [item < right] for item in range(ITEMS)}


def run_of(method, seed, **changes):
    curves = {"reward": [0.1, 0.5, 0.7], "tokens": [100, 200, 300], "seconds": [1.0, 2.0, 3.0]}
    made = {"trained_values": 128, "updates": 3, "seconds": {"train": 3.0}, "curves": {"steps": [1, 2, 3], **curves}}
    return {"expert": "math", "method": method, "seed": seed, **made, **changes}
