"""The watch sees what it is there for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.case import HARMLESS, MOST_CHARACTERS, Hostile, faults
from tests.hostile.meeting import Meeting, Warmed

SEEN = {
    "system": "it ran something: os.system",
    "child": "it ran something: subprocess.Popen",
    "fork": "it ran something: os.fork",
    "network": "it ran something: socket.connect",
    "builtin": "it ran something: builtins changed: ['harmed']",
    "safe_globals": "it ran something: torch's safe globals changed",
    "variable": "it ran something: TORCH_FORCE_WEIGHTS_ONLY_LOAD was left set",
    "outside": "it ran something: os.mkdir",
    "worker_system": "it ran something: os.system",
    "left_process": "it left a process",
    "left_file": "it left or changed ('here/mark'",
    "left_temporary": "it left or changed ('tmp/mark'",
    "left_home": "it left or changed ('home/mark'",
    "busy": "it hung",
    "asleep": "it hung",
    "large": "it took 1.",
    "large_worker": "it took 1.",
    "traceback": "a traceback",
    "control": "control characters",
}


@pytest.fixture(scope="module")
def meeting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Meeting]:
    def make(folder: Path) -> Path:
        (folder / "m").write_bytes(b"x")
        return folder / "m"

    warmed = Warmed()
    yield Meeting(Hostile("x", make, ()), tmp_path_factory.mktemp("watch"), warmed)
    warmed.close()


@pytest.mark.parametrize(("kind", "seen"), SEEN.items(), ids=SEEN)
def test_it_sees(kind: str, seen: str, meeting: Meeting) -> None:
    patience = 1 if seen == "it hung" else 30
    request = {"call": "tests.hostile.misbehaving:misbehave", "patience": patience}
    _, found = meeting.watched(request, kind)
    assert any(fault.startswith(seen) for fault in found), found


def ended(**others: object) -> dict[str, object]:
    plain = {"code": 3, "out": "", "err": "error: x", "seconds": 0.1, "elapsed": 0.1, "memory": 0}
    return {**plain, "hung": False, "swollen": False, "events": [], "left": [], **others}


@pytest.mark.parametrize(
    ("others", "made", "said"),
    [
        ({"code": 5}, set(), "exit 5: error: x"),
        ({"code": -11}, set(), "exit -11: error: x"),
        ({"code": 0}, set(), "exit 0: error: x"),
        ({"seconds": 11.0}, set(), "it took 11 s"),
        ({"memory": 700_000_000}, set(), "it took 0.7 GB"),
        ({"err": "x" * (MOST_CHARACTERS + 1)}, set(), "a text of 2001 characters"),
        ({}, {"out/folded"}, "it left ['out/folded'] with exit 3"),
    ],
)
def test_what_is_wrong(others: dict[str, object], made: set[str], said: str) -> None:
    case = Hostile("x", lambda folder: folder, ())
    assert faults(case, "fold", ended(), {}, {}, set()) == []
    assert faults(case, "fold", ended(**others), {}, {}, made) == [said]


def test_inspect_may_tell_of_what_does_not_run() -> None:
    case = Hostile("x", lambda folder: folder, (), codes=(1, 2, 3))
    assert faults(case, "inspect", ended(code=0), {}, {}, set()) == []
    assert faults(case, "fold", ended(code=0), {}, {}, set()) == ["exit 0: error: x"]
    assert (
        faults(
            Hostile("x", lambda folder: folder, (), codes=HARMLESS),
            "fold",
            ended(code=0),
            {},
            {},
            (),
        )
        == []
    )
