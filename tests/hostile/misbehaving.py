"""What no command may do, done on purpose: the watch has to see each."""

from __future__ import annotations

import builtins
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def system() -> None:
    os.system("true")


def child() -> None:
    subprocess.run(["true"], check=False)


def fork() -> None:
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)


def network() -> None:
    with suppress(OSError), socket.socket() as connection:
        connection.settimeout(0.01)
        connection.connect(("127.0.0.1", 9))


def builtin() -> None:
    builtins.harmed = True  # type: ignore[attr-defined]


def safe_globals() -> None:
    import torch

    torch.serialization.add_safe_globals([Path])


def variable() -> None:
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"


def outside() -> None:
    with suppress(OSError):
        os.mkdir("/proc/../bnfold-was-here/x")


def worker_system() -> None:
    subprocess.run([sys.executable, "-c", "import os; os.system('true')"], check=False)


def left_process() -> None:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)


def left_file() -> None:
    Path("mark").touch()


def left_temporary() -> None:
    Path(os.environ["TMPDIR"], "mark").touch()


def left_home() -> None:
    Path.home().joinpath("mark").touch()


def busy() -> None:
    while True:
        pass


def asleep() -> None:
    time.sleep(60)


def large() -> None:
    kept = []
    while True:
        kept.append(b"x" * (1 << 26))


def large_worker() -> None:
    code = "a = []\nwhile True: a.append(b'x' * (1 << 26))"
    subprocess.run([sys.executable, "-c", code], check=False)


def traceback() -> None:
    raise ValueError("x")


def control() -> None:
    sys.stdout.write("a\u202eb\x1b[2J")


KINDS: dict[str, Callable[[], None]] = {
    name: found
    for name, found in list(globals().items())
    if callable(found) and getattr(found, "__module__", "") == __name__
}


def misbehave(model: str, kind: str) -> int:
    KINDS[kind]()
    return 0
