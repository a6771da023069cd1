"""What a comparison ran on."""

import os
import platform
from pathlib import Path

import torch


def hardware() -> dict[str, str]:
    """Processor, cores that this process may use, memory, accelerator and Python."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": _processor(),
        "cores": f"{cores()} cores",
        "memory": f"{memory:.0f} GiB",
        "gpu": ", ".join(gpus),
        "python": f"Python {platform.python_version()}",
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
