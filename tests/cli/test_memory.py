import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
import eqflow.cli.main  # what a command has in memory when it asks
from eqflow.cli.memory import keep_freed_memory
agreed = keep_freed_memory() if {asked} else None
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
# Each a little larger than any before, which glibc left to itself maps anew.
before = faults()
for k in range(40):
    torch.ones(2**20 + k * 2**16)
print(agreed, faults() - before)
"""


def faults_of(asked: bool, **environment: str) -> tuple[str, int]:
    """What `keep_freed_memory` said, and page faults of 40 tensors of 4 to 14 MiB."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(asked=asked)],
        env={**ours, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    agreed, count = run.stdout.split()
    return agreed, int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the advice is to glibc")
def test_freed_memory_is_reused_without_faults() -> None:
    agreed, count = faults_of(asked=True)
    assert agreed == "True"
    _, count_otherwise = faults_of(asked=False)
    assert count < 10000  # they have 92,000 pages
    assert count_otherwise > 10 * count


def test_what_the_environment_says_is_left_alone() -> None:
    agreed, _ = faults_of(asked=True, MALLOC_TRIM_THRESHOLD_="131072")
    assert agreed == "False"
