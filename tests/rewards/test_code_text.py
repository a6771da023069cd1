"""The program in a completion: which texts may be it, and in what order."""

import time

import pytest

from svf_rl.rewards.reading.program_texts import find_candidates

CODE = "x = 1\n"


@pytest.mark.parametrize(
    ("completion", "first", "among"),
    [
        (CODE, CODE, []),
        (f"```python\n{CODE}```", None, [CODE]),
        (f"```py\n{CODE}```\n```python3\ny\n```", None, [CODE, "y\n"]),
        (f"~~~\n{CODE}~~~", None, [CODE]),
        (f"````python\n{CODE}```\n````", None, [f"{CODE}```\n"]),
        (f"{CODE}```\nprose", None, [CODE]),
        (f"```python\n{CODE}", None, [CODE]),
        (f"  ```python\n  {CODE}  ```", None, [f"  {CODE}"]),
        (f"```{{.python}}\n{CODE}```", None, [CODE]),
        ("", "", []),
        ("no code", "no code", []),
    ],
)
def test_texts_that_may_be_the_program(completion: str, first: str | None, among: list[str]) -> None:
    found = find_candidates(completion)
    assert found[0] == (completion if first is None else first)
    assert [text for text in among if text in found] == among


@pytest.mark.parametrize("mark", ["</s>", "<think>", "</think>", "<|endoftext|>", "<|im_end|>"])
def test_a_mark_between_quotes_in_a_block_is_the_program_s(mark: str) -> None:
    code = f"def f(x):\n    return x.split('{mark}')[-1]\n"
    assert code in find_candidates(f"<think>\nHm.\n</think>\nHere:\n```python\n{code}```\nThat's it.")


def test_a_mark_between_apostrophes_of_prose_ends_the_thinking() -> None:
    """As one in a block that the thinking leaves open."""
    draft = "```python\nx = 1\nThat's wrong.</think>Here's mine:\n"
    assert find_candidates(f"{draft}```python\n{CODE}```\n")[2] == CODE


@pytest.mark.parametrize("fence", ["```", "```python"])
def test_a_fence_in_a_docstring_ends_no_block(fence: str) -> None:
    code = f'def f(x):\n    """\n    Example:\n\n    {fence}\n    f(1)\n    ```\n    """\n    return x + 1\n'
    assert code in find_candidates(f"Here:\n```python\n{code}```\n")


def test_blocks_in_python_come_before_others() -> None:
    found = find_candidates("```bash\nls\n```\n```json\n{}\n```\n```python\nx = 1\n```\n")
    assert found.index("x = 1\n") < found.index("ls\n") < found.index("{}\n")


def test_a_prompt_gives_its_imports_to_a_program_and_its_head_to_a_body() -> None:
    prompt = "import math\n\ndef f(x):\n"
    assert find_candidates("    return x\n", prompt) == ["import math\n\n    return x\n", prompt + "    return x\n"]


@pytest.mark.parametrize(
    "completion",
    [
        "`" * 10**5, "~" * 10**5, "```" + "a" * 10**5, "``` " + " " * 10**5, "```\n" * 10**5, " " * 10**6, "\n" * 10**6,
        ("`" * 100 + "\n") * 1000, "```\n~~~\n" * 10**4, ("\n" + " " * 100) * 10**4, "```python " + "x " * 10**5,
        "".join("`" * (3 + i % 50) + "\n" for i in range(10**4)),
    ],
    ids=range(12),
)  # fmt: skip
def test_the_time_grows_with_the_length(completion: str) -> None:
    began = time.process_time()
    find_candidates(completion, "import math\ndef f(x):\n")
    assert time.process_time() - began < 2
