"""The process keeps what it frees, where the C library can be told to."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import load_backend

PROGRAM = """
import resource, sys
import numpy as np
from diffac.heap import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(5_000_000)
before = faults()
for _ in range(10):
    np.ones(5_000_000)
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has the setting")
def test_no_page_is_asked_for_twice() -> None:
    """40 MB are 10,000 pages; ten times over, unless they stay (huge pages need fewer, and are left out)."""
    faults = [
        int(subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "return")
    ]
    assert faults[0] < 100
    if faults[1] < 1000:
        pytest.skip("the C library keeps memory anyway")


RETURNED_PROGRAM = """
import resource
import numpy as np
from diffac.heap import keep_freed_memory, large_blocks_returned
def faults():
    np.ones(5_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.ones(5_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
keep_freed_memory()
with large_blocks_returned():
    within = faults()
print(within, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has the setting")
def test_large_blocks_can_be_returned_for_a_while() -> None:
    done = subprocess.run([sys.executable, "-c", RETURNED_PROGRAM], capture_output=True, text=True, check=True)
    within, after = map(int, done.stdout.split())
    assert after < 100
    plain = subprocess.run([sys.executable, "-c", PROGRAM, "return"], capture_output=True, text=True, check=True)
    if int(plain.stdout) < 1000:
        pytest.skip("the C library keeps memory anyway, or pages are huge")
    assert within > 1000


JAX_PROGRAM = """
import resource
import diffac_equinox
from diffac.heap import keep_freed_memory
import jax, jax.numpy as jnp
keep_freed_memory()
median = jax.jit(lambda x, y: jnp.sort(x @ y, axis=0)[2048])
x, y = jnp.ones((4096, 16)), jnp.ones((16, 5000))
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    median(x, y).block_until_ready()
before = faults()
median(x, y).block_until_ready()
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has the setting")
def test_no_page_of_a_compiled_program_is_asked_for_twice() -> None:
    """82 MB of temporary memory are 20,000 pages, which a thread of JAX's own would give back after every call."""
    load_backend("equinox")
    done = subprocess.run([sys.executable, "-c", JAX_PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 5_000


def test_nothing_happens_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffac import heap

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(heap, "ctypes", None)
    heap.keep_freed_memory()
