"""The state of a search on disk, so that one that was killed goes on where it stood."""

import json
from pathlib import Path
from typing import Any

from svf_rl.adaptation.ask_tell import Search
from svf_rl.errors import SVFError
from svf_rl.evaluation.folder import disk_errors, write_json

NAME = "search.json"
_KIND = "svf-rl few-shot search"

History = list[dict[str, Any]]


class SearchFile:
    """
    `search.json` in a folder, which is made with the first generation and not before.

    Args:
        folder (`Path`): a new or empty one, or that of an earlier call.
        settings (`dict`): what decides the outcome beside the search's own settings, as plain JSON.

    Raises:
        SVFError: the folder holds something else, a damaged file, or a search with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self._folder, self._settings = folder, json.loads(json.dumps(settings))
        self._stored = self._read()

    def resume(self, search: Search) -> History:
        """Set `search` to the state that is stored, and give the history up to there; empty where nothing is."""
        if self._stored is None:
            return []
        search.load_state_dict(self._stored["search"])
        return list(self._stored["history"])

    def write(self, search: Search, history: History) -> None:
        """Put the state in place of the last one, or raise `SVFError` and leave that one as it is."""
        with disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        content = {"kind": _KIND, "settings": self._settings, "search": search.state_dict(), "history": history}
        write_json(self._folder / NAME, content)

    def _is_new(self) -> bool:
        """Nothing is there, but for what a call that was killed at its first write has left."""
        return all(path.name == f".{NAME}" for path in self._folder.iterdir())

    def _read(self) -> dict[str, Any] | None:
        path = self._folder / NAME
        with disk_errors(path):
            if not path.is_file():
                if self._folder.exists() and not (self._folder.is_dir() and self._is_new()):
                    raise SVFError(f"{self._folder} holds something else than a search: give a new or empty folder")
                return None
            text = path.read_text(encoding="utf-8", errors="replace")
        try:
            content = json.loads(text)
            kind, there, _, _ = (content[name] for name in ("kind", "settings", "search", "history"))
        except (ValueError, KeyError, TypeError) as error:
            raise SVFError(f"{path} is damaged: remove it, or give another folder") from error
        if kind != _KIND:
            raise SVFError(f"{path} is not of a few-shot search: give another folder")
        for name in {**self._settings, **there}:
            if there.get(name) != self._settings.get(name):
                raise SVFError(
                    f"{path} is of a search with another {name}: {there.get(name)} there, {self._settings.get(name)} "
                    "here; give the same, or another folder"
                )
        return content
