"""A search on the server ends with a word, whatever ends it."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from svf_rl.endpoint.few_shot import FewShotJob


@pytest.mark.parametrize("error", [RuntimeError("the engine died"), Exception("of vLLM's own class")])
def test_a_search_that_an_error_of_the_engine_ends_has_failed(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def adapt(*_: Any) -> None:
        raise error

    monkeypatch.setattr("svf_rl.endpoint.few_shot.adapt", adapt)

    async def search() -> FewShotJob:
        job = FewShotJob(SimpleNamespace(seconds=60, items=None, search=None), {}, None, None, None)  # type: ignore[arg-type]
        for _ in range(200):
            if job.status != "running":
                break
            await asyncio.sleep(0.01)
        return job

    job = asyncio.run(search())
    assert (job.status, job.error) == ("failed", str(error))
    (record,) = [record for record in caplog.records if record.name == "svf_rl.endpoint.few_shot"]
    assert record.exc_info is not None
    assert record.exc_info[1] is error  # where it came from is in the server's log
