"""Run a fleet on the workers of a Dask scheduler. Needs the extra ``dask``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Any

from peerstage.errors import ConnectError, NotAvailable
from peerstage.printable import escape
from peerstage.reasons import Reason

log = logging.getLogger("peerstage.fleet")

#: Seconds to connect to the scheduler, and to disconnect.
_CONNECT_TIMEOUT = 30.0
_CLOSE_TIMEOUT = 10.0


@contextlib.contextmanager
def dask_executor(address: str, *, timeout: float = _CONNECT_TIMEOUT) -> Iterator[Executor]:
    """Yield an executor for `stage_fleet` that uses the workers of a running Dask scheduler.

    Every worker needs the staging pool under the same path, the same version of peerstage, and the keys, known hosts
    and configuration that ssh needs. Certificates for ``tls://`` come from Dask's own configuration.

    Args:
        address: The scheduler's address, such as ``tcp://scheduler:8786``.
        timeout: Seconds to wait for the scheduler.

    Raises:
        NotAvailable: If Dask is not installed.
        ConnectError: If the scheduler cannot be reached.
    """
    try:
        from distributed import Client
    except ImportError as exc:
        raise NotAvailable("Dask is not installed. Install peerstage[dask].") from exc
    connect: Any = Client  # its annotations are incomplete
    try:
        _require_scheduler(address, timeout)
        client = connect(address, timeout=timeout, set_as_default=False, name="peerstage")
    except (OSError, ValueError, TypeError, RuntimeError) as exc:
        raise ConnectError(
            f"The Dask scheduler {escape(address)} cannot be reached: {escape(str(exc))}. Check that it runs, and that "
            "the address is like tcp://scheduler:8786.",
            reason=Reason.CONNECT_FAILED,
        ) from exc
    try:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            log.warning("The Dask scheduler %s has no workers at the moment.", escape(address))
        yield client.get_executor(pure=False)
    finally:
        with contextlib.suppress(OSError, RuntimeError):
            client.close(timeout=_CLOSE_TIMEOUT)


def _require_scheduler(address: str, timeout: float) -> None:
    """Raise an error, mostly an OSError, unless a scheduler answers: `Client` waits for ever for any other server."""
    import distributed.core

    untyped: Any = distributed

    async def identify() -> None:
        arguments = untyped.Security().get_connection_args("client")
        async with untyped.core.rpc(address, timeout=timeout, connection_args=arguments) as scheduler:
            await asyncio.wait_for(scheduler.identity(), timeout)

    def ask() -> None:
        try:
            asyncio.run(identify())
            answer.put(None)
        except asyncio.TimeoutError:  # another class than TimeoutError before Python 3.11
            answer.put(OSError(f"no scheduler answered within {timeout:g} s"))
        except Exception as exc:
            answer.put(exc)

    # In a thread, since the caller's may have an event loop that runs, as in a notebook.
    answer: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
    threading.Thread(target=ask, daemon=True, name="peerstage-dask").start()
    failure = answer.get()
    if failure is not None:
        raise failure
