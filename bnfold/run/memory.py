"""How much memory a process may take here before others are killed for it."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

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
