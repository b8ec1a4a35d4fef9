"""Isolation of loggers. A tracker is a guest in the run: what fails in it is told once, and training goes on."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any, TypeVar

from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyExperiment
from lightning.pytorch.utilities import rank_zero_warn

L = TypeVar("L", bound=Logger)


def as_guest(logger: L) -> L:
    """The logger itself, of a subclass whose public methods and properties raise nothing.

    At the first error there is one warning, and from then on the logger does nothing: to ask again a tracker that is
    not there could be to wait again, each time. Only what is wrong with the logger's own arguments, a TypeError or
    ValueError when its experiment is made, is raised, since that is before training and the user's to mend.

    A logger may have a method ``_take_leave`` that is called then. How long a logger waits for its tracker is its own
    to limit; see :class:`diffusion_lightning.WandbLogger`.
    """
    logger.__class__ = _guest_class(type(logger))
    return logger


@contextmanager
def excused(logger: Logger) -> Iterator[None]:
    """Inside, what goes wrong with a guest's ``experiment`` is treated as if in its own methods; nothing for others."""
    if not _is_guest(logger):
        yield
    else:
        try:
            yield
        except Exception as error:
            _dismiss(logger, error)


def _guest_class(cls: type[L]) -> type[L]:
    members: dict[str, Any] = {}
    for name in dir(cls):
        member = inspect.getattr_static(cls, name)
        if name.startswith("_"):
            continue
        if name == "experiment":
            members[name] = property(_experiment(cls))
        elif isinstance(member, property):
            members[name] = property(_guarded(member.fget, is_silent_after=False), member.fset)
        elif inspect.isfunction(member):
            members[name] = _guarded(member, is_silent_after=True)
    members |= {"_is_guest": True, "_is_dismissed": False, "__reduce_ex__": _reduce(cls), "__module__": cls.__module__}
    # the name is also the key of the run's id in a checkpoint
    return type(cls.__name__, (cls,), members)


def _guarded(function: Any, is_silent_after: bool) -> Callable[..., Any]:
    """The function without its errors; after the first one it returns None at once, unless it merely tells something.

    A property then finds an experiment that does nothing, and so asks nobody.
    """

    @wraps(function)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._is_dismissed and is_silent_after:
            return None
        try:
            return function(self, *args, **kwargs)
        except _ArgumentError:
            raise
        except Exception as error:
            _dismiss(self, error)
            return None

    return call


def _experiment(cls: type[Logger]) -> Callable[[Any], Any]:
    original = inspect.getattr_static(cls, "experiment")

    def experiment(self: Any) -> Any:
        is_first, self._was_asked = not getattr(self, "_was_asked", False), True
        if not self._is_dismissed:
            try:
                return original.fget(self)
            except (TypeError, ValueError) as error:
                if is_first:
                    raise _ArgumentError(f"{cls.__name__}: {error}") from error
                _dismiss(self, error)
            except Exception as error:
                _dismiss(self, error)
        return DummyExperiment()

    return experiment


class _ArgumentError(ValueError):
    """What is wrong with a logger's arguments."""


def _dismiss(logger: Any, error: Exception) -> None:
    if not logger._is_dismissed:
        logger._is_dismissed = True
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        rank_zero_warn(f"{type(logger).__name__} failed and is left out from now on; training goes on: {reason}")
        with suppress(Exception):
            getattr(logger, "_take_leave", lambda: None)()


def _is_guest(logger: Logger) -> bool:
    return getattr(logger, "_is_guest", False)


def _reduce(cls: type[Logger]) -> Callable[..., Any]:
    def reduce(self: Any, protocol: Any) -> Any:
        return _guest_again, (cls,), *object.__reduce_ex__(self, protocol)[2:]

    return reduce


def _guest_again(cls: type[L]) -> L:
    return as_guest(cls.__new__(cls))
