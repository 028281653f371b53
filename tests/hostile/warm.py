"""A process that has imported everything and forks off each command: a second saved every time.

    python -m tests.hostile.warm        requests and answers are lines of JSON on stdin and stdout

A command runs as `bnfold` would, in its own folder, with its own HOME and TMPDIR, and is watched:

seconds   processor time of the command and what it started; `hung` if it was ended after `PATIENCE`
memory    bytes that it grew by, with what it started; `swollen` if it was ended past `MOST_MEMORY`
events    what it did that no command has a reason to do, from Python's audit hooks
left      processes that lived on after it

Where bnfold starts Python anew (for a model that is run apart, for a worker of `build`), the same
code runs in a fork, so that nothing is imported again.
"""

from __future__ import annotations

import atexit
import builtins
import ctypes
import gc
import json
import multiprocessing.util
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click

from bnfold.processes import child

PATIENCE = 30.0
"""Seconds by the clock; a machine that is busy with other things may be slow."""

MOST_MEMORY = 1 << 30
MOST_ADDRESSES = 24 << 30
LARGEST_FILE = 1 << 28
_TICK = 0.01
_PAGE = resource.getpagesize()
_PDEATHSIG, _SUBREAPER = 1, 36
"""Of prctl: a fork ends with this process; orphans become children of this process."""

_FOREIGN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn"),
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname"),
    *("socket.sendto", "urllib.Request", "webbrowser.open", "os.chown", "os.link", "os.symlink"),
)
"""Events of Python's audit hooks that a model has no business to cause."""

_OWN_PROGRAMS = ("uname", "lscpu", "ldconfig", "file")
"""What Python's `platform` and `ctypes.util` ask about the machine."""

_FORKING = os.path.join("bnfold", "processes", "watch.py")
"""The file of the product that forks, to watch what it does with a model."""


class Watch:
    """Notes on what a command does, in a file that its forks share."""

    def __init__(self, notes: Path, allowed: Sequence[str]) -> None:
        self.handle = os.open(notes, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        self._allowed = tuple(allowed)
        self.pausing = threading.local()
        self._builtins = dict(vars(builtins))
        self._admitted = _safe_globals()
        sys.addaudithook(self._hear)

    def note(self, what: str) -> None:
        os.write(self.handle, (what.encode("utf-8", "backslashreplace")[:400] + b"\n"))

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if getattr(self.pausing, "now", False):
            return
        self.pausing.now = True
        try:
            if self._is_foreign(event, arguments):
                self.note(f"{event} {arguments!r}".replace("\n", "\\n"))
        finally:
            self.pausing.now = False

    def fork(self) -> int:
        """A fork that is none of the command's own doing."""
        _flush()
        self.pausing.now = True
        pid = os.fork()
        self.pausing.now = False
        return pid

    def _is_foreign(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "subprocess.Popen":
            return Path(os.fsdecode(arguments[0])).name not in _OWN_PROGRAMS
        if event == "import":
            return arguments[0] in ("antigravity", "this", "pty", "telnetlib", "smtplib")
        if event == "open":
            path, _, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            return bool(writes) and isinstance(path, str | bytes) and self._is_outside(path)
        if event in ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "shutil.rmtree"):
            return isinstance(arguments[0], str | bytes) and self._is_outside(arguments[0])
        if event == "os.fork":  # by whom: past this method and the hook
            return not sys._getframe(2).f_code.co_filename.endswith(_FORKING)
        if event == "ctypes.dlopen":
            return str(arguments[0]).startswith(self._allowed)
        return event in _FOREIGN

    def _is_outside(self, path: str | bytes) -> bool:
        where = os.path.abspath(os.fsdecode(path))
        return not f"{where}/".startswith((*self._allowed, "/dev/", "/proc/"))

    def end(self) -> None:
        """Note what the command changed for everyone in its process."""
        now = vars(builtins)
        names = self._builtins.keys() | now.keys()
        changed = [n for n in names if n != "_" and self._builtins.get(n) is not now.get(n)]
        if changed:
            self.note(f"builtins changed: {changed}")
        if admitted := _safe_globals() ^ self._admitted:
            self.note(f"torch's safe globals changed: {admitted}")
        if "TORCH_FORCE_WEIGHTS_ONLY_LOAD" in os.environ:
            self.note("TORCH_FORCE_WEIGHTS_ONLY_LOAD was left set")


def _safe_globals() -> set[str]:
    """What torch's restricted unpickler admits in this process."""
    import torch

    return set(map(repr, torch.serialization.get_safe_globals()))


_watch: Watch | None = None


def _run_as_main(code: str, arguments: Sequence[str]) -> NoReturn:
    """Run the code of a `python -c` in this fork, and end it."""
    gc.freeze()
    atexit._clear()
    sys.argv = ["-c", *arguments]
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    ended = 0
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as error:
        ended = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        ended = 1
    _leave(ended)


def _leave(code: int) -> NoReturn:
    """End this fork with what a process does at its end, but without taking torch down."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    atexit._run_exitfuncs()
    os._exit(code)


def _close_all_but(kept: Sequence[int]) -> None:
    last = 2
    for handle in sorted({*kept, *([_watch.handle] if _watch else [])}):
        os.closerange(last + 1, handle)
        last = max(last, handle)
    os.closerange(last + 1, 4096)


def _as_new(environment: dict[str, str] | None) -> None:
    """What a new Python would have: its environment, its path, signals as they are at first."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if environment is not None:
        os.environ.clear()
        os.environ.update(environment)
    for entry in reversed(os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        if entry and entry not in sys.path:
            sys.path.insert(0, entry)


class ForkingPopen(subprocess.Popen):  # type: ignore[type-arg]
    """`Popen`, but `python -c CODE` is a fork of this process that runs CODE."""

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, *rest: Any) -> None:
        given = [os.fsdecode(arg) for arg in args] if isinstance(args, list | tuple) else []
        if given[:2] != [sys.executable, "-c"]:
            super()._execute_child(args, executable, preexec_fn, *rest)  # type: ignore[misc]
            return
        _, pass_fds, cwd, environment, _, _, _, *ends, _, _, _, _, _, new_session, _ = rest
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = ends
        self.pid = os.fork() if _watch is None else _watch.fork()
        if self.pid == 0:
            _run_forked(
                (p2cread, c2pwrite, errwrite),
                pass_fds,
                cwd,
                environment,
                new_session,
                preexec_fn,
                given[2:],
            )
        self._child_created = True
        for mine, other in ((p2cread, p2cwrite), (c2pwrite, c2pread), (errwrite, errread)):
            if mine != -1 and other != -1:
                os.close(mine)


def _run_forked(
    streams: Sequence[int],
    pass_fds: Sequence[int],
    cwd: Any,
    environment: dict[str, str] | None,
    new_session: bool,
    preexec_fn: Any,
    command: Sequence[str],
) -> NoReturn:
    if new_session:
        os.setsid()
    for number, handle in enumerate(streams):
        if handle != -1:
            os.dup2(handle, number)
    _close_all_but(pass_fds)
    if cwd is not None:
        os.chdir(cwd)
    _as_new(environment)
    if preexec_fn is not None:
        preexec_fn()
    _run_as_main(command[0], command[1:])


def _spawn_by_fork(path: Any, args: Sequence[Any], passfds: Sequence[int]) -> int:
    """In place of multiprocessing.util.spawnv_passfds, which starts Python anew."""
    given = [os.fsdecode(arg) for arg in args]
    assert _watch is not None
    pid = _watch.fork()
    if pid == 0:
        _close_all_but(passfds)
        _as_new(None)
        where = given.index("-c")
        _run_as_main(given[where + 1], given[where + 2 :])
    return pid


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _run(request: dict[str, Any], folder: Path) -> NoReturn:
    """The command itself, in a fork."""
    global _watch
    os.setsid()
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESSES, MOST_ADDRESSES))
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # known from before
    for number, name in enumerate(("/dev/null", folder / "out", folder / "err")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    sys.argv = ["bnfold", *request["arguments"]]
    sys.modules["__main__"] = types.ModuleType("__main__")
    _watch = Watch(folder / "notes", request["allowed"])
    subprocess.Popen = ForkingPopen  # type: ignore[misc]
    child.Popen = ForkingPopen  # type: ignore[misc]
    multiprocessing.util.spawnv_passfds = _spawn_by_fork  # type: ignore[attr-defined]
    code = 99
    try:
        if "call" in request:
            code = _call(request["call"], request["arguments"])
        else:
            from bnfold.cli import main

            main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    _watch.end()
    _leave(code)


def _call(name: str, arguments: Sequence[Any]) -> int:
    """Another function in place of the command line; what it gives goes to stdout."""
    module, _, function = name.partition(":")
    click.echo(getattr(import_module(module), function)(*arguments))
    return 0


def _tree(pid: int) -> Iterator[int]:
    """A process and all that it started."""
    yield pid
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                yield from _tree(int(child))
    except OSError:
        return


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _serve_one(request: dict[str, Any]) -> dict[str, Any]:
    folder = Path(request["notes"])
    base, started = _resident(os.getpid()), time.monotonic()
    pid = os.fork()
    if pid == 0:
        _run(request, folder)
    hung = swollen = False
    most, nap = 0, 0.001
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        tree = [*_tree(pid)]
        most = max(most, sum(max(0, _resident(each) - base) for each in tree))
        hung = time.monotonic() - started > request.get("patience", PATIENCE)
        swollen = most > MOST_MEMORY
        if hung or swollen:
            _kill(tree)
        time.sleep(nap)
        nap = min(_TICK, nap * 1.3)
    left = _orphans()
    code = os.waitstatus_to_exitcode(status)
    return {
        "code": code,
        "out": (folder / "out").read_text(errors="backslashreplace")[:100_000],
        "err": (folder / "err").read_text(errors="backslashreplace")[:100_000],
        "seconds": usage.ru_utime + usage.ru_stime,
        "elapsed": time.monotonic() - started,
        "memory": max(most, usage.ru_maxrss * 1024 - base),
        "hung": hung,
        "swollen": swollen,
        "events": (folder / "notes").read_text(errors="replace").splitlines(),
        "left": [] if hung or swollen else left,
    }


def _orphans() -> list[str]:
    """What the command left running, which has become a child of this process; it is ended."""
    found: list[str] = []
    deadline = time.monotonic() + 2
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid:
            continue
        if time.monotonic() > deadline:
            mine = [each for each in _tree(os.getpid()) if each != os.getpid()]
            for each in mine:
                with suppress(OSError):
                    found.append(Path(f"/proc/{each}/cmdline").read_text().replace("\0", " "))
            _kill(mine)
            deadline += 2
        time.sleep(0.002)


def _warm_up() -> None:
    """Import whatever a command may need, so that no fork has to."""
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import PIL.Image  # noqa: F401
    import torch
    import torch._dynamo
    import torch.export
    import torch.export.pt2_archive._package
    import torch.onnx._internal.exporter._core
    import torch.onnx.ops

    torch.set_num_threads(1)
    for name in (
        *("bench", "build", "export", "fold", "golden", "inspect", "verify"),
        *("conversion", "options"),
    ):
        __import__(f"bnfold.cli.{name}")
    for path in (Path(__file__).parents[2] / "bnfold").rglob("*.py"):
        parts = path.relative_to(Path(__file__).parents[2]).with_suffix("").parts
        if parts[-1] not in ("__init__", "__main__"):
            __import__(".".join(parts))
    torch.manual_seed(0)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    _warm_up()
    gc.collect()
    gc.freeze()
    print(json.dumps({"ready": _resident(os.getpid())}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_serve_one(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
