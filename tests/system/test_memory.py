"""The process keeps what it frees, where the C library can be told to."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import load_backend

PROGRAM = """
import resource
import numpy as np
from diffac.system.memory import keep_freed_memory, large_blocks_returned
def resident():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * resource.getpagesize()
def kept():
    before = resident()
    np.ones(5_000_000)
    return resident() - before
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.ones(5_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
plain = kept()
keep_freed_memory()
with large_blocks_returned():
    within = kept()
print(plain, within, kept(), faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has the setting")
def test_freed_memory_is_kept_and_large_blocks_can_be_returned_for_a_while() -> None:
    """40 MB are 10,000 pages, or fewer and larger ones: what stays resident does not depend on their size."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    plain, within, kept, faults = map(int, done.stdout.split())
    assert plain < 4_000_000
    assert within < 4_000_000
    assert kept > 36_000_000
    assert faults < 100


HOLES = """
import contextlib, resource, sys
import numpy as np
from diffac.system.memory import keep_freed_memory, large_blocks_returned
context, keeps = sys.argv[1:]
if keeps == "keeps":
    keep_freed_memory()
np.ones(3_000_000)  # from now on glibc takes blocks of up to 24 MB from the heap
small = []
def take(rows):
    large = []
    for _ in range(20):
        large.append(np.ones(rows))
        small.append(bytearray(100_000))
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
with large_blocks_returned() if context == "returned" else contextlib.nullcontext():
    print(-take(1_000_000) + take(1_001_000))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has the setting")
@pytest.mark.parametrize("keeps", ["keeps", "as-usual"])
def test_large_blocks_leave_no_holes_where_they_are_returned(keeps: str) -> None:
    """Twenty blocks of 8 MB with small ones that stay between them, then twenty that are a little larger."""
    grown = {}
    for context in ("returned", "plain"):
        done = subprocess.run([sys.executable, "-c", HOLES, context, keeps], capture_output=True, text=True, check=True)
        grown[context] = int(done.stdout)
    assert grown["returned"] < 40_000_000 < 100_000_000 < grown["plain"]


JAX_PROGRAM = """
import resource
import diffac.system, diffac_equinox
import jax, jax.numpy as jnp
diffac.system.configure(diffac_equinox)
median = jax.jit(lambda x, y: jnp.sort(x @ y, axis=0)[2048])
x, y = jnp.ones((4096, 16)), jnp.ones((16, 5000))
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def faulted():
    before = faults()
    median(x, y).block_until_ready()
    return faults() - before
print(*(faulted() for _ in range(8)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has the setting")
def test_no_page_of_a_compiled_program_is_asked_for_twice() -> None:
    """82 MB of temporary memory are 20,000 pages, which a thread of JAX's own would give back after every call.

    The heap may grow once more in a later call, where something small has come to lie in between.
    """
    load_backend("equinox")
    done = subprocess.run([sys.executable, "-c", JAX_PROGRAM], capture_output=True, text=True, check=True)
    assert min(map(int, done.stdout.split())) < 5_000


def test_nothing_happens_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffac.system import memory

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(memory, "ctypes", None)
    memory.keep_freed_memory()
