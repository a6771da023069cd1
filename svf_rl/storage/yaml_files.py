"""YAML that users write: read in a moment or refused with one line, however it is nested or refers to itself."""

from pathlib import Path
from re import compile as pattern
from typing import Any

import yaml

from svf_rl.errors import SVFError, one_line

_LONGEST = 200_000  # characters of a text, with each alias (`*name`) counted as what it stands for
_DEEPEST = 50  # lists and mappings within one another


class _Loader(yaml.SafeLoader):
    """YAML, but `1e-3` is a number, a key that appears twice is an error, and so is what no person writes."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[int, int] = {}  # of the nodes that are whole

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise SVFError(f"lists and mappings are nested more than {_DEEPEST} deep: write it flat")
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if is_alias:
            if id(node) not in self._sizes:
                raise SVFError("an alias (*name) stands within what it refers to: write the value out")
            return node
        if isinstance(node, yaml.ScalarNode):
            size = len(node.value)
        else:
            parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
            size = sum(self._sizes[id(part)] for part in parts)
        self._sizes[id(node)] = size + 1
        if size > _LONGEST:
            raise SVFError(f"with its aliases (*name) written out it has more than {_LONGEST:,} characters: shorten it")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise SVFError(f"key {key.value!r} appears twice, again in line {key.start_mark.line + 1}: keep one")
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", pattern(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Raises `SVFError` for invalid YAML, a key given twice, more than 200,000 characters
    (aliases written out), or more than 50 levels."""
    if len(text) > _LONGEST:
        raise SVFError(f"it has more than {_LONGEST:,} characters: shorten it")
    try:
        return yaml.load(text, _Loader)  # a subclass of the safe loader
    except SVFError:
        raise
    # beside its own, PyYAML lets through what int, float and datetime raise for text that only looks like theirs
    except (yaml.YAMLError, ValueError, AttributeError, LookupError, OverflowError) as error:
        raise SVFError(f"not valid YAML: {one_line(error)}") from error


def read_yaml(path: Path, kind: str) -> Any:
    """The value in a YAML file; `kind` names it in messages. Raises `SVFError` as [`parse_yaml`] does, and where the
    file cannot be read."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LONGEST + 1)  # and no more: /dev/zero has no end
    except (OSError, ValueError) as error:  # a ValueError for bytes that are not UTF-8, and for names with NUL
        reason = getattr(error, "strerror", None) or one_line(error)
        raise SVFError(f"{kind} {one_line(path)} cannot be read: {reason}") from error
    try:
        return parse_yaml(text)
    except SVFError as error:
        said = f" is {error}" if str(error).startswith("not valid") else f": {error}"
        raise SVFError(f"{kind} {path}{said}") from error
