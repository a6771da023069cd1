"""What pyproject.toml cannot say: the wheel has these folders of the checkout's top inside the package, as they are."""

from setuptools import find_namespace_packages, setup

BUNDLED = ("recipes", "recipes.reproduce", "accelerate_configs", "slurm")

setup(
    packages=[
        *find_namespace_packages(include=["svf_rl", "svf_rl.*"], exclude=["*.__pycache__"]),
        *(f"svf_rl.bundled.{name}" for name in BUNDLED),
    ],
    package_dir={f"svf_rl.bundled.{name}": name.replace(".", "/") for name in BUNDLED},
)
