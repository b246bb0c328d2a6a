"""Which tests are slow: decided by the fixtures that a test asks for, and enforced while the other tests run.

A test is slow if it needs a real sshd, containers, accounts of this machine, root, OpenSSH's programs, a new Python
interpreter, or seconds of patience. ``pytest -m "not slow"`` runs the others, on any machine.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

#: What only slow tests may ask for, directly or through another fixture.
SLOW_FIXTURES = frozenset(
    {"sshd", "own_sshd", "unprivileged_sshd", "sshd_pool", "bench", "accounts", "unprivileged_user"}
    | {"fresh_interpreter", "openssh", "coreutils", "root", "compromised_child", "patience"}
)

_PYTHONS = {os.path.basename(sys.executable), "python", "python3"}
#: Programs that only slow tests may start, and the fixture that a test asks for to be one.
_SLOW_PROGRAMS = {
    **dict.fromkeys(_PYTHONS, "fresh_interpreter"),
    **dict.fromkeys(("ssh", "scp", "ssh-keygen", "ssh-agent", "ssh-add", "sftp-server"), "openssh"),
    **dict.fromkeys(("useradd", "userdel", "unshare", "mount"), "root"),
    "sshd": "sshd",
    "sha256sum": "coreutils",
    "docker": "bench",
    "docker-compose": "bench",
}


class SlowTests:
    """A pytest plugin that marks slow tests, and fails an unmarked test that starts a slow program."""

    def __init__(self) -> None:
        self._running: pytest.Item | None = None
        sys.addaudithook(self._on_event)  # it cannot be removed; it looks only while a fast test runs

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())) or item.get_closest_marker("kind"):
                item.add_marker("slow")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self._running = None if item.get_closest_marker("slow") or item.get_closest_marker("bulk") else item
        try:
            return (yield)
        finally:
            self._running = None

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._running is None or event != "subprocess.Popen":
            return
        words = [os.fsdecode(word) for word in arguments[1]] if isinstance(arguments[1], (list, tuple)) else []
        for word in (os.fsdecode(arguments[0]), *words[:1]):
            fixture = _SLOW_PROGRAMS.get(os.path.basename(word))
            if fixture is not None:
                raise AssertionError(f"This test starts {word}: ask for the fixture {fixture!r}, which marks it slow.")
