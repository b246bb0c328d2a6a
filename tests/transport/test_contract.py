"""The transport contract, run on every transport."""

from __future__ import annotations

import getpass
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from peerstage.isolation.parent.isolated_transport import build_isolated_transport
from peerstage.isolation.users import find_local_user
from peerstage.records import Limits
from peerstage.testing.contract import DirectorySource, Source, TransportContract
from peerstage.testing.memory import MemoryFile, MemoryTransport
from peerstage.transport.base import Transport
from peerstage.transport.factory import TransportOptions, build_transport
from peerstage.transport.local import LocalTransport
from peerstage.transport.retry import Retry
from peerstage.watchdog import Watchdog
from support.local_user import LOCAL_USER, options_by_value, rcp_command_as
from support.programs import rcp_command
from support.sshd import Sshd


class MemorySource(Source):
    directory = b"/collect"

    def __init__(self) -> None:
        self.files: dict[bytes, MemoryFile] = {}

    def write(self, name: bytes, data: bytes, mode: int = 0o644, mtime: int | None = None) -> None:
        times = {} if mtime is None else {"mtime": mtime}
        self.files[name] = MemoryFile(data, stat.S_IFREG | mode, **times)

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
        return LocalTransport(Watchdog(Limits()))


@pytest.mark.parametrize("name", ["sftp", "scp"])
class TestOpenSSH(TransportContract):
    """Over the system's OpenSSH server."""

    @pytest.fixture
    def source(self, collect: Path) -> Source:
        return DirectorySource(collect)

    @pytest.fixture
    def transport(self, sshd: Sshd, name: str) -> Iterator[Transport]:
        watchdog = Watchdog(Limits())
        options = TransportOptions(name=sshd.host, user=sshd.user, ssh=sshd.options(), transport=name)
        with build_transport(options, retry=Retry(), watchdog=watchdog) as transport:
            yield transport
        watchdog.close()


@pytest.fixture(scope="class")
def child(sshd: Sshd, name: str, user: str | None) -> Iterator[Transport]:
    """A transport in a child process, shared by all tests of one transport and user."""
    watchdog = Watchdog(Limits())
    with tempfile.TemporaryDirectory(prefix="peerstage-test-") as path:
        os.chmod(path, 0o777)
        options = TransportOptions(
            name=sshd.host,
            user=sshd.user,
            ssh=options_by_value(sshd),
            transport=name,
            rcp_command=rcp_command_as(user or getpass.getuser(), sshd, Path(path)) if name == "rcp" else None,
            working_directory=path,
        )
        whom = find_local_user(user)
        with build_isolated_transport(whom, options, isolated=True, retry=Retry(), watchdog=watchdog) as transport:
            yield transport
    watchdog.close()


@pytest.mark.parametrize("user", [None, LOCAL_USER], scope="class")
@pytest.mark.parametrize("name", ["sftp", "scp", "rcp"], scope="class")
class TestIsolated(TransportContract):
    """In a child process, of the same user and of another, over the system's OpenSSH server."""

    @pytest.fixture
    def source(self, collect: Path) -> Source:
        return DirectorySource(collect)

    @pytest.fixture
    def transport(self, child: Transport) -> Transport:
        return child


class TestRcp(TransportContract):
    """OpenSSH's scp as the rcp command."""

    @pytest.fixture
    def source(self, collect: Path) -> Source:
        return DirectorySource(collect)

    @pytest.fixture
    def transport(self, sshd: Sshd, tmp_path: Path) -> Iterator[Transport]:
        watchdog = Watchdog(Limits())
        options = TransportOptions(
            name=sshd.host,
            user=sshd.user,
            ssh=sshd.options(),
            rcp_command=rcp_command(sshd.ssh_arguments()),
            working_directory=str(tmp_path),
        )
        with build_transport(options, retry=Retry(), watchdog=watchdog) as transport:
            yield transport
        watchdog.close()
