"""A combination of saved adapters, as what stands where vLLM has the path of one."""

import json
from dataclasses import asdict, dataclass

from svf_rl.errors import SVFError
from svf_rl.svf.combine import check_record

_SCHEME = "svf-mix:"


@dataclass(frozen=True)
class Mixture:
    """`m` of several adapters combined, see `svf_rl.svf.combine`: `alpha` has a row for each group of `scope`, and in
    it a weight for each of `experts`, which are folders or names on the Hub."""

    experts: tuple[str, ...]
    alpha: tuple[tuple[float, ...], ...]
    scope: str = "global"
    form: str = "deviation"

    @property
    def path(self) -> str:
        """What a request for it names to vLLM. Equal mixtures have equal paths, and share vLLM's prefix cache."""
        return _SCHEME + json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def of_path(cls, path: str) -> "Mixture | None":
        """`None` for an ordinary path. Raises `SVFError` for a mixture that is none."""
        if not path.startswith(_SCHEME):
            return None
        try:
            content = json.loads(path.removeprefix(_SCHEME))
        except ValueError as error:
            raise SVFError(f"a mixture that is no JSON ({error})") from error
        check_record(content)
        return cls(
            tuple(content["experts"]),
            tuple(map(tuple, content["alpha"])),
            content.get("scope", "global"),
            content.get("form", "deviation"),
        )
