"""Verify that the installed paramiko has what `internals` declares, and that it calls what we override."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Iterator
from typing import Any, NoReturn

import paramiko

from peerstage.errors import NotAvailable
from peerstage.reasons import Reason
from peerstage.ssh._paramiko import internals

#: The versions that were tested, as in pyproject.toml; tests/ssh/_paramiko/against.py tests another.
TESTED_VERSIONS = ">=5.1,<5.2"


@functools.cache
def check_paramiko() -> None:
    """Verify that every unpublished name that we use exists with the declared signature; once per process.

    Raises:
        NotAvailable: If the installed paramiko differs. The message names its version and the tested versions.
    """
    if found := list(_differences()):
        refuse_paramiko(f"lacks or changed {', '.join(found[:3])}{' and others' if len(found) > 3 else ''}")


def refuse_paramiko(difference: str) -> NoReturn:
    """Raise the error for an installed paramiko that does not behave as the tested versions.

    Args:
        difference: A verb and its object, for the message: "paramiko 6.0 *does not call ...*".
    """
    raise NotAvailable(
        f"paramiko {paramiko.__version__} {difference}, which peerstage depends on. Install a tested version: "
        f'pip install "paramiko{TESTED_VERSIONS}".',
        reason=Reason.PARAMIKO_INCOMPATIBLE,
    )


def _differences() -> Iterator[str]:
    """Yield each declared name that is missing, or has another signature or type."""
    yield from internals.missing_imports
    if internals.missing_imports:
        return
    for declared, create in (
        (internals.TransportInternals, _create_transport),
        (internals.PacketizerInternals, lambda: _create_transport().packetizer),
        (internals.ChannelInternals, lambda: paramiko.Channel(0)),
        (internals.ChannelMapInternals, internals.ChannelMap),
        (internals.BufferInternals, internals.BufferedPipe),
        (internals.AuthInternals, lambda: internals.AuthOnlyHandler(_NoSocket())),  # type: ignore[arg-type]
    ):
        kind = declared.__name__.removesuffix("Internals")
        try:
            instance = create()
        except Exception as exc:
            yield f"{kind} ({type(exc).__name__}: {exc})"
        else:
            yield from (f"{kind}.{name}" for name in _differing_members(declared, instance))


def _create_transport() -> paramiko.Transport:
    return paramiko.Transport(_NoSocket())  # type: ignore[arg-type]


def _differing_members(declared: type, instance: object) -> Iterator[str]:
    for name, annotation in typing.get_type_hints(declared).items():
        value = getattr(instance, name, _MISSING)
        if value is _MISSING or not _has_type(value, annotation):
            yield name
    for name, member in vars(declared).items():
        found = getattr(type(instance), name, None)
        if isinstance(member, property):
            if not isinstance(found, property):
                yield name
        elif inspect.isfunction(member) and _parameters(found) != _parameters(member):
            yield name


def _has_type(value: object, annotation: Any) -> bool:
    """Return whether *value* is an instance of *annotation*; an int counts as a float."""
    if typing.get_origin(annotation) is typing.ClassVar:
        (annotation,) = typing.get_args(annotation)
    if annotation is Any:
        return True
    if isinstance(annotation, types.UnionType):
        return isinstance(value, annotation)
    kind = typing.get_origin(annotation) or annotation
    return isinstance(value, (int, float) if kind is float else kind)


def _parameters(function: Any) -> list[tuple[str, Any, Any]] | None:
    """Return names, kinds and defaults of the parameters; None if *function* is not a function."""
    if not inspect.isfunction(function):
        return None
    parameters = inspect.signature(function).parameters.values()
    return [(parameter.name, parameter.kind, parameter.default) for parameter in parameters]


_MISSING = object()


class _NoSocket:
    """The methods of a socket that `paramiko.Transport` calls before it is started."""

    def settimeout(self, seconds: float) -> None:
        """Ignore the timeout."""

    def close(self) -> None:
        """Do nothing."""
