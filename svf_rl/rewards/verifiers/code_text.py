"""Finds the program in a completion."""

import re

# an opening fence with its language, then everything up to a closing fence, or to the end where none closes it
_BLOCK = re.compile(
    r"^[ \t]*(?P<fence>`{3,}+|~{3,}+)[ \t]*+(?P<language>[\w+#.-]*+)[^\n]*+\n(?P<code>.*?)(?:^[ \t]*(?P=fence)|\Z)",
    re.M | re.S,
)
_CLOSING = re.compile(r"^[ \t]*(?:```|~~~)", re.M)
_PYTHON = ("python", "py", "python3", "python2", "")


def find_candidates(completion: str, prompt: str = "") -> list[str]:
    """
    The texts that may be the program, best first; the first one that compiles and defines what the tests call is used.

    Args:
        completion (`str`): raw code; code in a fenced block; code that continues a prefilled turn up to a closing
            fence; or, with `prompt`, the body of the function that the prompt begins.
        prompt (`str`, *optional*): the beginning of the program. Its imports are put before a complete program too.
    """
    blocks = list(_BLOCK.finditer(completion))
    python = [match["code"] for match in blocks if match["language"].lower() in _PYTHON]
    other = [match["code"] for match in blocks if match["language"].lower() not in _PYTHON]
    closing = _CLOSING.search(completion)
    opened = [completion[: closing.start()]] if closing else []
    texts = [text for text in [completion, *opened, *python, *other] if text.strip()] or [completion]
    if not prompt:
        return texts
    preamble = re.split(r"^(?:def|class|async def|@)", prompt, maxsplit=1, flags=re.M)[0]
    return [preamble + text for text in texts] + [prompt + text for text in texts]
