"""How docstrings are read for the site: the types of arguments without the marks of Hugging Face's style."""

import re
from typing import Any

import griffe

_ARGUMENT = re.compile(r"^(?P<name> *\*{0,2}\w+ )\((?P<type>`.*|\[`.*)\):(?= |$)", re.MULTILINE)


class PlainTypes(griffe.Extension):
    """``name (`str`, *optional*, defaults to `"x"`):`` becomes `name (str, optional):`; the default is shown anyway."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _ARGUMENT.sub(_plain, obj.docstring.value)


def _plain(found: "re.Match[str]") -> str:
    kind = found["type"].partition(", defaults to")[0]
    if "[" not in kind.replace("[`", ""):  # `str`, `int` or `float`: any of them, and not a tuple of them
        kind = kind.replace("`, `", "` or `")
    plain = re.sub(r"[`*]|\[(?=`)|(?<=`)\]", "", kind)
    return f"{found['name']}({plain}):"
