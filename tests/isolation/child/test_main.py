"""A child reports why it runs no job, and what the system refused while it ran one, with the reason."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator

import pytest

from peerstage import Limits, Retry, SSHOptions
from peerstage.errors import StageError
from peerstage.isolation.parent.child_process import ChildProcess
from peerstage.isolation.parent.isolated_transport import IsolatedTransport
from peerstage.isolation.users import LocalUser
from peerstage.reasons import Reason
from peerstage.transport.factory import TransportOptions
from peerstage.watchdog import Watchdog

pytestmark = pytest.mark.usefixtures("leaves_nothing", "fresh_interpreter")

OPTIONS = TransportOptions(name="db1", user="backup", ssh=SSHOptions(config=()))
#: Without root the child may not change its groups; with root this user keeps root's privileges.
ROOT = LocalUser("root", 0, 0, "/", "/bin/sh")
#: A child with a module `failing`, whose function raises an error.
FAILING_CHILD = """
import errno, gc, sys, types
gc.disable()  # as the bootstrap does
sys.path[:0] = {path!r}
def fail(*arguments):
    raise {error}
sys.modules["failing"] = types.SimpleNamespace(fail=fail)
from peerstage.isolation.child.main import main
main()
"""


def failing_child(watchdog: Watchdog, error: str) -> IsolatedTransport:
    """Return a transport whose child has a module ``failing`` that raises *error*, a Python expression."""
    program = FAILING_CHILD.format(path=sys.path, error=error)
    return IsolatedTransport(
        OPTIONS,
        None,
        limits=Limits(),
        retry=Retry(),
        watchdog=watchdog,
        modules=["failing"],
        start_child=lambda environment: ChildProcess(environment, [sys.executable, "-c", program]),
    )


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    watchdog = Watchdog(Limits())
    yield watchdog
    watchdog.close()


def test_a_child_that_cannot_drop_privileges_says_so_for_every_job(watchdog: Watchdog) -> None:
    with IsolatedTransport(OPTIONS, ROOT, limits=Limits(), retry=Retry(), watchdog=watchdog) as transport:
        for _ in range(2):
            with pytest.raises(StageError, match="Root privileges were not dropped") as caught:
                transport.stat(b"/collect/cback.collect")
            assert caught.value.reason is Reason.PRIVILEGES_NOT_DROPPED


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("OSError(errno.EMFILE, 'Too many open files')", Reason.OUT_OF_DESCRIPTORS),
        ("MemoryError()", Reason.OUT_OF_MEMORY),
        ('RuntimeError("can\'t start new thread")', Reason.OUT_OF_THREADS),
    ],
)
def test_what_the_system_refuses_to_a_child_arrives_with_its_reason(
    watchdog: Watchdog, error: str, reason: Reason
) -> None:
    with failing_child(watchdog, error) as transport:
        for _ in range(2):  # the child goes on
            with pytest.raises(StageError) as caught:
                transport.call("failing:fail", None, lambda data: None)
            assert caught.value.reason is reason


def test_a_child_collects_garbage_while_it_runs_jobs(watchdog: Watchdog) -> None:
    error = "OSError(errno.EIO if gc.isenabled() and gc.get_freeze_count() > 10_000 else errno.EPERM, 'enabled')"
    with failing_child(watchdog, error) as transport, pytest.raises(StageError) as caught:
        transport.call("failing:fail", None, lambda data: None)
    assert caught.value.errno == errno.EIO
