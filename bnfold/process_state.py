"""What a process has one of, changed for a while by one thread at a time, and put back.

Warning filters, the levels of loggers, sys.stdout, the recursion limit, torch's default type and
the classes that its unpickler admits belong to no thread. Who changes one does so inside `alone`,
where there is one thread at a time; a thread that is inside may enter again. Verbs run `in_turn`:
what one of them computes does not depend on what another has changed meanwhile.

Other threads of the caller's, that use torch and not bnfold, see what is changed while it is.
"""

from __future__ import annotations

import functools
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, TypeVar

_TURN = threading.RLock()

_Value = TypeVar("_Value")
_Parameters = ParamSpec("_Parameters")


@contextmanager
def alone() -> Iterator[None]:
    """No other thread is in here; it waits until this one has left."""
    with _TURN:
        yield


@contextmanager
def changed(
    read: Callable[[], _Value], write: Callable[[_Value], object], value: _Value
) -> Iterator[None]:
    """What `read` tells is `value`; afterwards it is what it was."""
    with alone():
        before = read()
        write(value)
        try:
            yield
        finally:
            write(before)


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Without warnings, and without log lines of the loggers called so."""
    with alone(), ExitStack() as stack:
        for logger in map(logging.getLogger, loggers):
            level = functools.partial(getattr, logger, "level")
            stack.enter_context(changed(level, logger.setLevel, logging.CRITICAL))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


def in_turn(function: Callable[_Parameters, _Value]) -> Callable[_Parameters, _Value]:
    """The function, of which one call runs at a time, in whatever thread."""

    @functools.wraps(function)
    def waiting(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Value:
        with alone():
            return function(*args, **kwargs)

    return waiting
