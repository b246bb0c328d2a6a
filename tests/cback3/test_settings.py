"""The settings file beside cback3's configuration; an error names file and line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from peerstage.cback3.settings import Settings, settings_path
from peerstage.errors import ConfigurationError
from peerstage.stage_options import StageOptions


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
    ("config", "settings"),
    [
        ("/etc/cback3.conf", "/etc/cback3.peerstage.ini"),
        ("/etc/cback3/weekly.xml", "/etc/cback3/weekly.peerstage.ini"),
        ("/etc.d/cback3", "/etc.d/cback3.peerstage.ini"),
    ],
)
def test_the_settings_file_is_beside_the_configuration(config: str, settings: str) -> None:
    assert settings_path(config) == settings


def test_the_settings_file_is_optional(path: Path) -> None:
    settings = Settings(str(path))
    settings.read()
    peer_settings = settings.of_peer("db1")
    assert settings.parallel == 1
    assert (peer_settings.transport, repr(peer_settings.ssh), peer_settings.limits.deadline) == (
        "auto",
        "SSHOptions()",
        None,
    )


def test_the_section_of_a_peer_overrides_the_one_for_all(path: Path) -> None:
    settings = read(
        path,
        "# ours\n[stage]\nparallel = 4\ntransport=scp\nport = 22\nidentity = /a /b\nssh_config = none\n\n"
        "; one of them\n[peer db1.example.com]\ntransport = guarded\nport = 2222\nelevate = sudo -n x ; y # z\n"
        "deadline = 90\n",
    )
    db1, other = settings.of_peer("db1.example.com"), settings.of_peer("db2")
    assert settings.parallel == 4
    assert (db1.transport, other.transport) == ("guarded", "scp")
    assert (db1.ssh.port, other.ssh.port) == (2222, 22)
    assert db1.ssh.identity == other.ssh.identity == ("/a", "/b")
    assert db1.ssh.config == ()
    assert db1.ssh.elevate == "sudo -n x ; y # z"
    assert (db1.limits.deadline, other.limits.deadline) == (90, None)


def test_stage_options_apply_to_all_peers_and_may_differ_for_one(path: Path) -> None:
    settings = read(
        path,
        "[stage]\npreserve_times = yes\ndurable = no\ndeadline = 90\n\n"
        "[peer db1]\npreserve_times = no\nmanifest = yes\n",
    )
    assert settings.of_peer("db1").stage == StageOptions(durable=False, manifest=True)
    assert settings.of_peer("db2").stage == StageOptions(durable=False, preserve_times=True)
    assert settings.of_peer(None).stage == StageOptions(durable=False, preserve_times=True)


def test_patterns_are_separated_by_spaces_and_a_peer_may_have_none(path: Path) -> None:
    settings = read(
        path, "[stage]\ninclude = *.gz  *.sha256\nexclude = lost+found\nmax_size = 10G\n\n[peer db1]\ninclude = none\n"
    )
    assert settings.of_peer("db1").stage == StageOptions(exclude="lost+found", max_size=10 << 30)
    everywhere = StageOptions(include=("*.gz", "*.sha256"), exclude=("lost+found",), max_size=10 << 30)
    assert settings.of_peer("db2").stage == settings.of_peer(None).stage == everywhere


def test_a_checksum_file_that_is_not_selected_is_refused(path: Path) -> None:
    settings = read(path, "[stage]\nchecksums = SHA256SUMS\n\n[peer db1]\ninclude = *.gz\n")
    assert settings.of_peer("db2").stage.checksums == "SHA256SUMS"
    with pytest.raises(ConfigurationError, match=r"db1: StageOptions: include must be .* the checksum file"):
        settings.of_peer("db1")


def test_a_bandwidth_limit_may_have_a_suffix(path: Path) -> None:
    settings = read(path, "[stage]\nbwlimit = 20M\n\n[peer db1]\nbwlimit = 500k\n")
    assert settings.of_peer("db1").stage == StageOptions(bwlimit=500 * 1024)
    assert settings.of_peer("db2").stage == StageOptions(bwlimit=20 * 1024 * 1024)


def test_a_checksum_file_means_that_files_are_compared_with_it(path: Path) -> None:
    settings = read(path, "[stage]\nchecksums = SHA256SUMS\n\n[peer db1]\nchecksums = none\n")
    assert settings.of_peer("db1").stage == StageOptions()
    assert settings.of_peer(None).stage == StageOptions(verify="sha256", checksums="SHA256SUMS")


def test_a_peer_without_sftp_may_have_no_partial_dir(path: Path) -> None:
    settings = read(path, "[stage]\npartial_dir = /srv/partial\n\n[peer db1]\npartial_dir = none\n")
    assert settings.of_peer("db1").stage == StageOptions()
    assert settings.of_peer("db2").stage == settings.of_peer(None).stage == StageOptions(partial_dir="/srv/partial")


MISTAKES = {
    "an unknown key": ("[stage]\nparalel = 4\n", r"Line 2: unknown key 'paralel'; valid keys are .*parallel"),
    "a key of the stage for a peer": ("[peer db1]\nparallel = 4\n", "Line 2: unknown key 'parallel'"),
    "a section without a name": ("[peer]\n", "Line 1: a section must be"),
    "an unknown section": ("[stages]\n", r"Line 1: a section must be \[stage\] or \[peer NAME\], not '\[stages\]'"),
    "a section twice": ("[peer a]\nport = 1\n[peer a]\n", "Line 3: 'a' already has a section"),
    "a key twice": ("[stage]\nport = 1\nport = 2\n", "Line 3: port is already set"),
    "no section": ("port = 1\n", "Line 1: a section must come first"),
    "no value": ("[stage]\nport =\n", "Line 2: a setting must be KEY = VALUE"),
    "no key": ("[stage]\nyes\n", "Line 2: a setting must be KEY = VALUE, not 'yes'"),
    "an invalid port": ("[stage]\nport = 0\n", "Line 2: port cannot be '0'.*1 to 65535"),
    "a word for a number": ("[stage]\nport = ssh\n", "Line 2: port cannot be 'ssh'"),
    "too many at a time": (
        "[stage]\nparallel = 1000\n",
        "Line 2: parallel cannot be '1000': it must be a number from 1 to 64",
    ),
    "none at a time": ("[stage]\nparallel = 0\n", "Line 2: parallel cannot be '0'"),
    "an unknown transport": (
        "[stage]\ntransport = ftp\n",
        "Line 2: transport cannot be 'ftp': it must be one of auto, sftp, scp",
    ),
    "an invalid deadline": ("[stage]\ndeadline = -1\n", "Line 2: deadline cannot be '-1'"),
    "a relative directory": (
        "[stage]\npartial_dir = partial\n",
        "Line 2: partial_dir cannot be 'partial': .*an absolute path",
    ),
    "a number for a flag": ("[stage]\ndurable = 1\n", "Line 2: durable cannot be '1': it must be yes or no"),
    "a checksum file elsewhere": ("[stage]\nchecksums = a/b\n", "Line 2: checksums cannot be 'a/b': .*a directory"),
    "too low a bandwidth limit": ("[stage]\nbwlimit = 20\n", "Line 2: bwlimit cannot be '20': .*1024 or more"),
    "a pattern with a slash": ("[stage]\nexclude = a/b\n", "Line 2: exclude cannot be 'a/b': .*no slash"),
    "an unknown suffix": ("[stage]\nbwlimit = 20X\n", "Line 2: bwlimit cannot be '20X': .*K, M, G or T"),
    "an invalid fingerprint": ("[stage]\nhost_key = yes\n", "Line 2: host_key cannot be 'yes'"),
    "escapes": ("[stage]\n\x1b[2J = 1\n", r"Line 2: unknown key '\\+x1b\[2J'"),
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_names_file_and_line(path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        read(path, text)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602])
def test_a_file_that_others_can_write_is_refused(path: Path, mode: int) -> None:
    with pytest.raises(ConfigurationError, match="Other users can write to it"):
        read(path, "[stage]\n", mode)


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (Path.mkdir, "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.write_text("# 🗄\n" * 200_000), "larger than 1048576 bytes"),
        (lambda path: path.symlink_to(path), "symbolic links"),
    ],
    ids=["a directory", "a FIFO", "a device", "too large", "a loop"],
)
def test_anything_but_a_small_regular_file_is_refused(
    path: Path, create: Callable[[Path], object], message: str
) -> None:
    create(path)
    with pytest.raises(ConfigurationError, match=f"cannot be read: .*{message}"):
        Settings(str(path)).read()


def test_a_section_for_an_unknown_peer_is_refused(path: Path) -> None:
    settings = read(path, "[stage]\n\n[peer db1]\nhost_key = SHA256:x\n")
    settings.require_known_peers({"db1", "db2"})
    with pytest.raises(ConfigurationError, match="Line 3: 'db1' is not a remote peer of the stage section"):
        settings.require_known_peers({"db2"})
