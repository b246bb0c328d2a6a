"""Fixtures that all folders share."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from peerstage import RemotePeer
from support import bench_run
from support.leaks import Snapshot
from support.programs import require_program
from support.quick import disk_directory, use_memory
from support.slow import SlowTests
from support.sshd import Sshd, SshdPool, start_sshd

pytest_plugins = ["support.accounts"]

#: Keep compiled tests, whatever the environment says: each worker and each run inside a test would compile them all.
sys.dont_write_bytecode = False

use_memory()


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SlowTests())
    config.pluginmanager.register(bench_run)
    # A background job ignores SIGINT, and one under nohup SIGHUP; child processes would inherit that.
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Exclude from garbage collection what the collection of the tests creates, half a million objects.

    They live as long as the process. Looking at them takes a quarter of a second each time, and copies them in a fork.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without-docker",
        action="store_true",
        help="deselect the tests against containers, and print their number at the end",
    )
    parser.addoption(
        "--every-fault",
        action="store_true",
        help="let every system call of the library fail with every error, instead of one error per line (minutes)",
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return the scheduler that follows the plan of the run."""
    from support.schedule import PlannedScheduling

    return PlannedScheduling(config, log)


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, so that this machine's ssh configuration, keys and agent do not affect tests."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return home


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of a test: in memory if possible, except for those with much data, which are marked ``bulk``."""
    if request.node.get_closest_marker("bulk"):
        with disk_directory() as path:
            yield path
    else:
        yield tmp_path
        monkeypatch.undo()  # the directory is removed by system calls that a test may have replaced


@pytest.fixture(scope="session")
def fresh_interpreter() -> str:
    """The Python that runs the tests, for tests that start another process of it."""
    return sys.executable


@pytest.fixture(scope="session")
def openssh() -> None:
    """Requires OpenSSH's client programs."""
    require_program("ssh")


@pytest.fixture(scope="session")
def coreutils() -> None:
    """Requires sha256sum(1) of coreutils."""
    require_program("sha256sum")


@pytest.fixture(scope="session")
def patience() -> None:
    """Marks a test that takes seconds, because it waits for a limit or handles much data."""


@pytest.fixture(scope="session")
def root() -> None:
    """Requires root; without it the test fails."""
    if os.geteuid() != 0:
        pytest.fail("This test needs root: run it as root, or leave it out with -m 'not slow'.")


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """The system's OpenSSH server, shared by the whole run."""
    server = start_sshd(tmp_path_factory.mktemp("sshd"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def sshd_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshdPool]:
    """Servers for exclusive use by one test after another."""
    pool = SshdPool(tmp_path_factory.mktemp("sshds"))
    yield pool
    pool.stop()


@pytest.fixture
def own_sshd(tmp_path: Path, sshd_pool: SshdPool) -> Iterator[Callable[..., Sshd]]:
    """Starts servers for one test, which may kill them or configure them."""
    own: list[Sshd] = []
    taken: list[Sshd] = []

    def start(**changes: Any) -> Sshd:
        if "/" in repr(changes):  # files of this test
            own.append(start_sshd(tmp_path / f"sshd{len(own)}", **changes))
            return own[-1]
        taken.append(sshd_pool.take(**changes))
        return taken[-1]

    yield start
    for server in own:
        server.stop()
    for server in taken:
        sshd_pool.give_back(server)


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A directory that every user can reach, as pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="peerstage-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def server_of_the_unprivileged(unprivileged_user: str | None) -> Iterator[Sshd]:
    """A server whose login is not root, shared by the whole run."""
    with tempfile.TemporaryDirectory(prefix="peerstage-test-") as home:
        Path(home).chmod(0o755)
        server = start_sshd(Path(home) / "sshd", user=unprivileged_user)
        yield server
        server.stop()


@pytest.fixture
def unprivileged_sshd(server_of_the_unprivileged: Sshd, public_path: Path, unprivileged_user: str | None) -> Sshd:
    """The server whose login is not root, with that user's empty directory ``collect`` in *public_path*."""
    collect = public_path / "collect"
    collect.mkdir(mode=0o755)
    if unprivileged_user is not None:
        shutil.chown(collect, unprivileged_user)
    return server_of_the_unprivileged


@pytest.fixture
def unprivileged(unprivileged_sshd: Sshd, public_path: Path) -> RemotePeer:
    """A remote peer whose login is not root, with an empty collect directory."""
    server = unprivileged_sshd
    return RemotePeer(server.host, str(public_path / "collect"), "/tmp", server.user, ssh=server.options())


@pytest.fixture
def collect(tmp_path: Path) -> Path:
    """An empty collect directory."""
    path = tmp_path / "collect"
    path.mkdir()
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """An empty target directory."""
    path = tmp_path / "target"
    path.mkdir()
    return path


@pytest.fixture
def peer(sshd: Sshd, collect: Path) -> RemotePeer:
    """A remote peer on the real server, with an empty collect directory."""
    return RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, ssh=sshd.options())


@pytest.fixture(scope="session")
def bulk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random file of 96 MiB, more than what is in flight at once. Link it; do not change it."""
    path = tmp_path_factory.mktemp("bulk") / "bulk"
    with path.open("wb") as file:
        for _ in range(96):
            file.write(os.urandom(1 << 20))
    return path


@pytest.fixture
def leaves_nothing() -> Iterator[None]:
    """Fails the test if it leaves a thread, child process or descriptor behind."""
    before = Snapshot.take()
    yield
    before.compare()
