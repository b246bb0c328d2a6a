"""The transport contract on every transport there is."""

from __future__ import annotations

import getpass
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from peerstage.isolation.transport import assemble_as
from peerstage.isolation.users import copying_user
from peerstage.records import Limits
from peerstage.session.watchdog import Watchdog
from peerstage.testing.contract import DirectorySource, Source, TransportContract
from peerstage.testing.memory import MemoryFile, MemoryTransport
from peerstage.transport.base import Transport
from peerstage.transport.choose import Route, assemble
from peerstage.transport.local import LocalTransport
from peerstage.transport.retry import Retry
from support.local_user import LOCAL_USER, by_value, rcp_as
from support.programs import rcp_command
from support.sshd import Sshd


class MemorySource(Source):
    directory = b"/collect"

    def __init__(self) -> None:
        self.files: dict[bytes, MemoryFile] = {}

    def write(self, name: bytes, data: bytes, mode: int = 0o644) -> None:
        self.files[name] = MemoryFile(data, stat.S_IFREG | mode)

    def make_directory(self, name: bytes) -> None:
        self.files[name] = MemoryFile(mode=stat.S_IFDIR | 0o755)

    def read(self, name: bytes) -> bytes | None:
        file = self.files.get(name)
        return None if file is None else file.data


class TestMemory(TransportContract):
    @pytest.fixture
    def source(self) -> MemorySource:
        return MemorySource()

    @pytest.fixture
    def transport(self, source: MemorySource) -> Transport:
        return MemoryTransport({source.directory: source.files})


class TestLocal(TransportContract):
    @pytest.fixture
    def source(self, collect: Path) -> Source:
        return DirectorySource(collect)

    @pytest.fixture
    def transport(self) -> Transport:
        return LocalTransport(Watchdog(Limits()), Limits())


@pytest.mark.parametrize("name", ["sftp", "scp"])
class TestOpenSSH(TransportContract):
    """Over the system's OpenSSH server."""

    @pytest.fixture
    def source(self, collect: Path) -> Source:
        return DirectorySource(collect)

    @pytest.fixture
    def transport(self, sshd: Sshd, name: str) -> Iterator[Transport]:
        limits = Limits()
        watchdog = Watchdog(limits)
        route = Route(name=sshd.host, user=sshd.user, ssh=sshd.options(), transport=name)
        with assemble(route, limits=limits, retry=Retry(), watchdog=watchdog) as transport:
            yield transport
        watchdog.close()


@pytest.fixture(scope="class")
def child(sshd: Sshd, name: str, user: str | None) -> Iterator[Transport]:
    """A transport in a child process, which all tests of one transport and user share."""
    limits = Limits()
    watchdog = Watchdog(limits)
    with tempfile.TemporaryDirectory(prefix="peerstage-test-") as place:
        os.chmod(place, 0o777)
        route = Route(
            name=sshd.host,
            user=sshd.user,
            ssh=by_value(sshd),
            transport=name,
            rcp_command=rcp_as(user or getpass.getuser(), sshd, Path(place)) if name == "rcp" else None,
            working_directory=place,
        )
        whom = copying_user(user)
        with assemble_as(whom, route, isolated=True, limits=limits, retry=Retry(), watchdog=watchdog) as transport:
            yield transport
    watchdog.close()


@pytest.mark.parametrize("user", [None, LOCAL_USER], scope="class")
@pytest.mark.parametrize("name", ["sftp", "scp", "rcp"], scope="class")
class TestApart(TransportContract):
    """In a child process, of the same user and of another, over the system's OpenSSH server."""

    @pytest.fixture
    def source(self, collect: Path) -> Source:
        return DirectorySource(collect)

    @pytest.fixture
    def transport(self, child: Transport) -> Transport:
        return child


class TestRcp(TransportContract):
    """OpenSSH's scp as a foreign command."""

    @pytest.fixture
    def source(self, collect: Path) -> Source:
        return DirectorySource(collect)

    @pytest.fixture
    def transport(self, sshd: Sshd, tmp_path: Path) -> Iterator[Transport]:
        limits = Limits()
        watchdog = Watchdog(limits)
        route = Route(
            name=sshd.host,
            user=sshd.user,
            ssh=sshd.options(),
            rcp_command=rcp_command(sshd.ssh_arguments()),
            working_directory=str(tmp_path),
        )
        with assemble(route, limits=limits, retry=Retry(), watchdog=watchdog) as transport:
            yield transport
        watchdog.close()
