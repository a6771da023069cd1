"""The cluster of the SLURM tests: started once, taken down whatever happens."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, missing_programs


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A SLURM of two nodes on this host."""
    missing = missing_programs()
    if missing:
        pytest.skip(f"SLURM is not installed ({', '.join(missing)} missing): make test-slurm installs it as root")
    # not pytest's own folder: sockets have short names, and munged wants folders that others cannot write
    folder = Path(tempfile.mkdtemp(prefix="svf_rl_slurm_"))
    folder.chmod(0o755)
    made = Cluster(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)
