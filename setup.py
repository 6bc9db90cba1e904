"""Package metadata; the pinned requirements live in requirements.txt."""

from setuptools import find_packages, setup

setup(
    name="distributed_training",
    version="0.1.0",
    description="A Bittensor subnet in which strangers train one language model together",
    python_requires=">=3.11",
    packages=find_packages(include=["template*", "distributed_training*", "neurons*"]),
)
