"""The state of a search on disk, from which one that was killed resumes."""

from pathlib import Path
from typing import Any

from svf_rl.adaptation.ask_tell import Search
from svf_rl.errors import SVFError
from svf_rl.storage.disk_errors import disk_errors
from svf_rl.storage.files import write_json
from svf_rl.storage.folders import is_unused
from svf_rl.storage.json_files import normalize_json, read_json
from svf_rl.storage.same_settings import check_same_settings

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
        self._folder, self._settings = folder, normalize_json(settings)
        self._stored = self._read()

    def resume(self, search: Search) -> History:
        """Set `search` to the state that is stored, and give the history up to there; empty where nothing is."""
        if self._stored is None:
            return []
        search.load_state_dict(self._stored["search"])
        return list(self._stored["history"])

    def write(self, search: Search, history: History) -> None:
        """Put the state in place of the last one, or raise `SVFError` and leave that one as it is."""
        content = {"kind": _KIND, "settings": self._settings, "search": search.state_dict(), "history": history}
        write_json(self._folder / NAME, content)

    def _read(self) -> dict[str, Any] | None:
        path = self._folder / NAME
        with disk_errors(path):
            if not path.is_file():
                if self._folder.exists() and not (self._folder.is_dir() and is_unused(self._folder)):
                    raise SVFError(f"{self._folder} holds something else than a search: give a new or empty folder")
                return None
        shape = {"kind": str, "settings": dict, "search": dict, "history": list}
        content = read_json(path, "remove it, or give another folder", shape)
        if content["kind"] != _KIND:
            raise SVFError(f"{path} is not of a few-shot search: give another folder")
        remedy = "give the same, or another folder"
        check_same_settings(content["settings"], self._settings, f"{path} is of a search", remedy)
        return content
