"""Our own file beside cback3's: what it may say, and what is an error that names file and line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from peerstage.cback3.settings import Settings, beside
from peerstage.errors import ConfigurationError


def read(path: Path, text: str, mode: int = 0o600) -> Settings:
    path.write_text(text)
    path.chmod(mode)
    settings = Settings(str(path))
    settings.read()
    return settings


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cback3.peerstage.ini"


@pytest.mark.parametrize(
    ("config", "own"),
    [
        ("/etc/cback3.conf", "/etc/cback3.peerstage.ini"),
        ("/etc/cback3/weekly.xml", "/etc/cback3/weekly.peerstage.ini"),
        ("/etc.d/cback3", "/etc.d/cback3.peerstage.ini"),
    ],
)
def test_it_stands_beside_the_configuration(config: str, own: str) -> None:
    assert beside(config) == own


def test_it_need_not_be_there(path: Path) -> None:
    settings = Settings(str(path))
    settings.read()
    one = settings.of("db1")
    assert settings.parallel == 1
    assert (one.transport, repr(one.ssh), one.limits.deadline) == ("auto", "SSHOptions()", None)


def test_a_peer_s_own_section_wins_over_the_one_for_all(path: Path) -> None:
    settings = read(
        path,
        "# ours\n[stage]\nparallel = 4\ntransport=scp\nport = 22\nidentity = /a /b\nssh_config = none\n\n"
        "; one of them\n[peer db1.example.com]\ntransport = guarded\nport = 2222\nelevate = sudo -n x ; y # z\n"
        "deadline = 90\n",
    )
    db1, other = settings.of("db1.example.com"), settings.of("db2")
    assert settings.parallel == 4
    assert (db1.transport, other.transport) == ("guarded", "scp")
    assert (db1.ssh.port, other.ssh.port) == (2222, 22)
    assert db1.ssh.identity == other.ssh.identity == ("/a", "/b")
    assert db1.ssh.config == ()
    assert db1.ssh.elevate == "sudo -n x ; y # z"
    assert (db1.limits.deadline, other.limits.deadline) == (90, None)


MISTAKES = {
    "an unknown key": ("[stage]\nparalel = 4\n", r"Line 2: there is no 'paralel' here; there are .*parallel"),
    "a key of the stage for a peer": ("[peer db1]\nparallel = 4\n", "Line 2: there is no 'parallel' here"),
    "a section without a name": ("[peer]\n", "Line 1: a section is"),
    "an unknown section": ("[stages]\n", r"Line 1: a section is \[stage\] or \[peer NAME\], not '\[stages\]'"),
    "a section twice": ("[peer a]\nport = 1\n[peer a]\n", "Line 3: 'a' has a section already"),
    "a key twice": ("[stage]\nport = 1\nport = 2\n", "Line 3: port is said already"),
    "no section": ("port = 1\n", "Line 1: a section comes first"),
    "no value": ("[stage]\nport =\n", "Line 2: a line is KEY = VALUE"),
    "no key": ("[stage]\nyes\n", "Line 2: a line is KEY = VALUE, not 'yes'"),
    "a port that is none": ("[stage]\nport = 0\n", "Line 2: port can not be '0'.*1 to 65535"),
    "a word for a number": ("[stage]\nport = ssh\n", "Line 2: port can not be 'ssh'"),
    "too many at a time": ("[stage]\nparallel = 1000\n", "Line 2: parallel can not be '1000': a number from 1 to 64"),
    "none at a time": ("[stage]\nparallel = 0\n", "Line 2: parallel can not be '0'"),
    "an unknown transport": (
        "[stage]\ntransport = ftp\n",
        "Line 2: transport can not be 'ftp': one of auto, sftp, scp",
    ),
    "a deadline that is none": ("[stage]\ndeadline = -1\n", "Line 2: deadline can not be '-1'"),
    "a fingerprint that is none": ("[stage]\nhost_key = yes\n", "Line 2: host_key can not be 'yes'"),
    "escapes": ("[stage]\n\x1b[2J = 1\n", r"Line 2: there is no '\\+x1b\[2J' here"),
}


@pytest.mark.parametrize(("text", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_names_file_and_line(path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        read(path, text)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602])
def test_a_file_that_others_can_write_is_refused(path: Path, mode: int) -> None:
    with pytest.raises(ConfigurationError, match="Others can write it"):
        read(path, "[stage]\n", mode)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Path.mkdir, "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.write_text("# 🗄\n" * 200_000), "larger than 1048576 bytes"),
        (lambda path: path.symlink_to(path), "symbolic links"),
    ],
    ids=["a directory", "a FIFO", "a device", "too large", "a loop"],
)
def test_what_is_no_small_regular_file_is_refused(path: Path, make: Callable[[Path], object], words: str) -> None:
    make(path)
    with pytest.raises(ConfigurationError, match=f"cannot be read: .*{words}"):
        Settings(str(path)).read()


def test_a_section_for_a_peer_that_is_none_is_refused(path: Path) -> None:
    settings = read(path, "[stage]\n\n[peer db1]\nhost_key = SHA256:x\n")
    settings.require_known({"db1", "db2"})
    with pytest.raises(ConfigurationError, match="Line 3: 'db1' is no remote peer of the stage section"):
        settings.require_known({"db2"})
