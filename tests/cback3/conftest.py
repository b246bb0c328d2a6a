"""A configuration as cback3 passes it to an action, and cback3's log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from peerstage.cback3 import executeAction
from peerstage.util import getUidGid
from support.sshd import Sshd

#: cedar-backup3 needs Python 3.11.
CBACK3_RUNS = sys.version_info >= (3, 11)

_LEFT_OUT = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cback3: needs the real cback3, which needs Python 3.11")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if CBACK3_RUNS:
        return
    deselected = [item for item in items if item.get_closest_marker("cback3")]
    config.stash[_LEFT_OUT] = len(deselected)
    config.hook.pytest_deselected(items=deselected)
    items[:] = [item for item in items if item not in deselected]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash.get(_LEFT_OUT, 0):
        terminalreporter.write_line(
            f"{config.stash[_LEFT_OUT]} tests of the real cback3 were left out: it needs Python 3.11 or later."
        )


class Site:
    """A site's configuration, as the objects that cback3 passes to an action, and its staging directory."""

    def __init__(self, directory: Path, server: Sshd) -> None:
        self.server = server
        self.config_path = directory / "cback3.conf"
        self.settings = directory / "cback3.peerstage.ini"
        self.staging = directory / "staging"
        self.options = SimpleNamespace(
            startingDay="monday",
            workingDir=str(directory),
            backupUser=server.user,
            backupGroup="root",
            rcpCommand="/no/such/rcp",
        )
        self.stage = SimpleNamespace(targetDir=str(self.staging), localPeers=None, remotePeers=None)
        self.peers: Any = None

    @property
    def config(self) -> SimpleNamespace:
        return SimpleNamespace(options=self.options, stage=self.stage, peers=self.peers)

    def write_settings(self, more: str = "", **changes: object) -> None:
        """Write the settings file, which says how the server is reached."""
        values = {
            "port": self.server.port,
            "identity": self.server.identity,
            "known_hosts": self.server.known_hosts,
            "ssh_config": "none",
            **changes,
        }
        self.settings.write_text("".join(["[stage]\n", *(f"{k} = {v}\n" for k, v in values.items()), more]))
        self.settings.chmod(0o600)

    def run(self, *, full: bool = False) -> None:
        executeAction(str(self.config_path), SimpleNamespace(full=full), self.config)

    @property
    def day(self) -> Path:
        """The only day that was staged."""
        (day,) = self.staging.glob("*/*/*")
        return day


def local(name: str, directory: Path | str, mode: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(name=name, collectDir=str(directory), ignoreFailureMode=mode)


def remote(name: str, directory: Path | str, mode: str | None = None, **more: object) -> SimpleNamespace:
    values = {"remoteUser": None, "rcpCommand": None, **more}
    return SimpleNamespace(name=name, collectDir=str(directory), ignoreFailureMode=mode, **values)


@pytest.fixture
def site(tmp_path: Path, sshd: Sshd) -> Site:
    """A site without peers, with settings that reach the test's server."""
    site = Site(tmp_path, sshd)
    site.options.backupGroup = group_of_root()
    site.write_settings()
    return site


@pytest.fixture
def cback_log() -> Iterator[Callable[[], Sequence[tuple[str, str]]]]:
    """Returns levels and messages of the records in cback3's log."""
    records: list[logging.LogRecord] = []

    class RecordingHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    flow = logging.getLogger("CedarBackup3.log")
    handler, before = RecordingHandler(logging.INFO), flow.level
    flow.addHandler(handler)
    flow.setLevel(logging.DEBUG)
    yield lambda: [(record.levelname, record.getMessage()) for record in records]
    flow.removeHandler(handler)
    flow.setLevel(before)


def group_of_root() -> str:
    import grp

    group = grp.getgrgid(0).gr_name
    getUidGid("root", group)
    return group
