"""Short names of folders, for tables and files."""

from collections.abc import Sequence
from pathlib import Path

from svf_rl.errors import SVFError


def path_names(paths: Sequence[str | Path], taken: Sequence[str] = (), separator: str = "/") -> list[str]:
    """
    Of each path the shortest end that tells it from the others, and from the names that are `taken`: `runs/a/best` and
    `runs/b/best` become `a/best` and `b/best`.

    Args:
        paths (`Sequence`): folders, or names on the Hub.
        taken (`Sequence[str]`, *optional*): names that none of them may have.
        separator (`str`, *optional*, defaults to `"/"`): what stands between the parts of a name.

    Raises:
        SVFError: a path comes twice, or two would share a name.
    """
    resolved = [Path(path).resolve() if Path(path).is_dir() else Path(path) for path in paths]
    for place, path in enumerate(resolved):
        if path in resolved[:place]:
            raise SVFError(f"{paths[place]} is named twice: name each folder once")
    names = []
    for path in resolved:
        others = [other.parts for other in resolved if other != path] + [(name,) for name in taken]
        length = 1
        while length < len(path.parts) and any(other[-length:] == path.parts[-length:] for other in others):
            length += 1
        names.append(separator.join(part for part in path.parts[-length:] if part != path.anchor))
    for given, name in zip(paths, names, strict=True):
        if names.count(name) > 1 or name in taken:
            raise SVFError(f"{given} would share the name {name} with another one: rename a folder")
    return names
