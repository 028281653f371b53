"""How much memory there is for a process, and a limit on how much it takes.

A limit makes an allocation fail, which is an error with a sentence, where the system would end some
process. Only Linux has one that counts memory alone, and not the addresses that are set apart.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STACKS = 32 << 20
"""Bytes for the stack and the allocator of each thread that a run may start."""

_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")
_FILES = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
"""What a container may take, has taken, and of what: control groups of version 2, of version 1."""

_FREE_AGAIN = re.compile(r"^(?:total_)?inactive_file (\d+)$", re.MULTILINE)
"""What was read from files and can be dropped; version 1 has it twice, the last for all within."""


def available_memory() -> int | None:
    """Bytes: what the system, and the container, have left; None where nothing tells."""
    found = []
    with suppress(OSError, AttributeError):
        line = re.search(r"^MemAvailable: *(\d+) kB", _MEMINFO.read_text(), re.MULTILINE)
        found.append(int(line[1]) * 1024)  # type: ignore[index]
    for limit, used, stat in _FILES:
        with suppress(OSError, ValueError):  # "max" where there is no limit
            most, taken = (int((_GROUP / name).read_text()) for name in (limit, used))
            again = _FREE_AGAIN.findall((_GROUP / stat).read_text())
            found.append(most - taken + int(again[-1] if again else 0))
    return max(min(found), 0) if found else None


def limit(most: int | None) -> None:
    """Let this process take no more than `most` bytes in all; None: what it may by itself."""
    if sys.platform != "linux" or most is None:
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def limit_growth(more: int) -> None:
    """Let this process take no more than `more` bytes beside what it has."""
    if sys.platform != "linux":
        return
    import resource

    before, _ = resource.getrlimit(resource.RLIMIT_DATA)
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    most = pages * resource.getpagesize() + more + STACKS * (os.cpu_count() or 1)
    limit(most if before == resource.RLIM_INFINITY else min(most, before))


@contextmanager
def limited(more: int | None) -> Iterator[None]:
    """The same for a while; None: as it may."""
    if sys.platform != "linux" or more is None:
        yield
        return
    import resource

    before, _ = resource.getrlimit(resource.RLIMIT_DATA)
    limit_growth(more)
    try:
        yield
    finally:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))
