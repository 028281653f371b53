"""Why torch could not run or follow a module: where in the user's own code, and in whose words."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from bnfold.errors import first_line

FOUND = {
    "data-dependent": "what happens here depends on the values of a tensor",
    ".numpy() is not supported": "a tensor is handed to NumPy",
    "__format__": "the value of a tensor is put into a text",
    "is not an instance of torch.nn.Parameter": "a part of it is TorchScript",
    "ScriptModule": "a part of it is TorchScript",
}
"""What torch says of the cases that are met most, and what that means."""


def found_in(error: BaseException) -> str:
    """What torch.export could not follow: "net.py:12 (if x.sum() > 0:): what happens here ..."."""
    text = str(error)
    what = next((words for sign, words in FOUND.items() if sign in text), first_line(error))
    where = line_of(error).removeprefix(" at ")
    return f"{where}: {what}" if where else what


def cause_of(error: BaseException) -> str:
    """What an error that was raised from others began with: torch's exporters put steps first."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def line_of(error: BaseException) -> str:
    """Where in the user's own code it happened: " at net.py:12 (x = self.conv(x))"."""
    inside = str(Path(torch.__file__).parent)
    here = str(Path(__file__).parent.parent)
    for each in _chain(error):
        frames = [
            frame
            for frame in traceback.extract_tb(each.__traceback__)
            if not frame.filename.startswith((inside, here, "<"))
        ]
        if frames:
            last = frames[-1]
            return f" at {Path(last.filename).name}:{last.lineno} ({last.line})"
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it was raised for."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
