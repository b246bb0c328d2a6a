"""Run a function as the local user of ``--local-user``, in a child process that has dropped root's privileges.

The function reads that user's keys and configuration, and connects. Its results are lines of JSON, which this process
does not trust.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, TypeVar

from peerstage.cli.signals import cancel_on_signal
from peerstage.isolation.parent.child_process import CLEANUP_TIMEOUT
from peerstage.isolation.parent.isolated_transport import IsolatedTransport
from peerstage.isolation.protocol.values import child_violation
from peerstage.isolation.users import find_local_user
from peerstage.records import MIB, Limits
from peerstage.target.base import Buffer
from peerstage.transport.factory import TransportOptions
from peerstage.transport.retry import Retry
from peerstage.watchdog import Watchdog

#: Bytes of one result, and of all results of a call.
MAX_RESULT, _MAX_TOTAL = MIB, 256 * MIB


class Message(Protocol):
    """A result that a child sends to this process."""

    def to_message(self) -> dict[str, Any]:
        """Return a value that JSON can hold."""

    @classmethod
    def from_message(cls, message: Any) -> Any:
        """Return the result in *message*, which is not trusted.

        Raises:
            ProtocolError: If it is invalid.
        """


M = TypeVar("M", bound=Message)
#: A function that gets arguments that JSON can hold, and calls back with each result.
Function: TypeAlias = Callable[[TransportOptions, Watchdog, dict[str, Any], Callable[[M], object]], None]


def run_as_local_user(
    user_name: str | None,
    function: Function[M],
    result_type: type[M],
    options: TransportOptions,
    limits: Limits,
    arguments: dict[str, Any],
    on_result: Callable[[M], object],
    *,
    seconds: float | None = None,
    cleanup_timeout: float = CLEANUP_TIMEOUT,
) -> None:
    """Call *function* as the local user *user_name*; in this process if that is the caller, or None. Signals cancel it.

    Args:
        function: A function of a module that can be imported without the extra ``cli``.
        seconds: The deadline of the whole call in a child process; by default that of one operation. In this process
            only *limits* apply.
        cleanup_timeout: Seconds that the child has to clean up after SIGTERM.

    Raises:
        NotAvailable: If another user is named, and this process is not root's.
        ConfigurationError: If there is no such user.
        StageError: If the child process failed, or *function* did.
    """
    user = find_local_user(user_name)
    call = {"module": function.__module__, "function": function.__name__, "arguments": arguments}
    reader = ResultReader(lambda message: on_result(result_type.from_message(message)))
    watchdog = Watchdog(limits, peer=options.name)
    with contextlib.closing(watchdog), cancel_on_signal(watchdog.cancel):
        if user is None:
            function(options, watchdog, arguments, on_result)
            return
        with IsolatedTransport(
            options,
            user,
            limits=limits,
            retry=Retry(),
            watchdog=watchdog,
            modules=[__name__, function.__module__],
            cleanup_timeout=cleanup_timeout,
        ) as child:
            child.call(f"{__name__}:call_in_child", call, reader.feed, seconds=seconds)


def call_in_child(
    options: TransportOptions,
    limits: Limits,
    watchdog: Watchdog,
    call: dict[str, Any],
    write: Callable[[bytes], object],
) -> None:
    """Call the function that *call* names, and write its results."""

    def send(result: Message) -> None:
        write(json.dumps(result.to_message()).encode("ascii") + b"\n")

    function = getattr(importlib.import_module(call["module"]), call["function"])
    function(options, watchdog, call["arguments"], send)


class ResultReader:
    """Splits what a child writes into lines, and calls *on_message* with the JSON in each."""

    def __init__(self, on_message: Callable[[Any], object]) -> None:
        self._on_message = on_message
        self._pending = bytearray()
        self._received = 0

    def feed(self, data: Buffer) -> None:
        """Add *data*, and handle the lines that it completes."""
        self._pending += data
        self._received += len(data)
        while (end := self._pending.find(b"\n")) >= 0:
            line = bytes(self._pending[:end])
            del self._pending[: end + 1]
            try:
                message = json.loads(line)
            except (ValueError, RecursionError) as exc:
                raise child_violation("The child process sent an invalid result.") from exc
            self._on_message(message)
        if len(self._pending) > MAX_RESULT or self._received > _MAX_TOTAL:
            raise child_violation("The child process sent too many results.")
