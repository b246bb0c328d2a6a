"""The public interface: its names, paths of every kind, and help that shows only what users can use."""

from __future__ import annotations

import os
import pydoc
import re
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import pytest

import peerstage
import peerstage.testing
from peerstage import Limits, LocalPeer, RemotePeer, Retry, SSHOptions, sweep, util
from peerstage.isolation.protocol.jobs import decode_transport_options, encode_settings
from peerstage.ssh.config.destination import Destination
from peerstage.ssh.config.resolve import resolve_destination
from peerstage.target.private_directory import PREFIX
from peerstage.testing import Source, TransportContract, hash_files, make_sample
from peerstage.transport.base import Transport
from peerstage.transport.factory import TRANSPORTS, TransportName, TransportOptions

_PUBLIC = [getattr(package, name) for package in (peerstage, peerstage.testing) for name in package.__all__]
#: Public classes, without errors, enums and base classes for users' own classes.
CLASSES = [
    kind
    for kind in _PUBLIC
    if isinstance(kind, type) and not issubclass(kind, (BaseException, Enum, Source, Transport, TransportContract))
]


class BytesPath(os.PathLike[bytes]):
    """A path whose file system path is bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> bytes:
        return os.fsencode(self._path)


FORMS = {"str": str, "bytes": os.fsencode, "PathLike[str]": Path, "PathLike[bytes]": BytesPath}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Any:
    """Returns a path as each type that Python accepts."""
    return FORMS[request.param]


def test_a_local_peer_accepts_every_kind_of_path(form: Any, collect: Path, target: Path) -> None:
    (collect / "cback.collect").touch()
    peer = LocalPeer("here", form(collect))
    assert peer.checkCollectIndicator(form(Path("cback.collect")))
    assert peer.stagePeer(form(target)) == 1
    peer.writeStageIndicator(form(Path("cback.stage")))
    assert (collect / "cback.stage").exists()
    assert (target / "cback.collect").exists()


def test_a_remote_peer_accepts_every_kind_of_path(form: Any, tmp_path: Path) -> None:
    peer = RemotePeer("db1", form(tmp_path), form(tmp_path / "w"), "backup")
    assert (peer.collectDir, peer.workingDir) == (str(tmp_path), str(tmp_path / "w"))


def test_sweep_accepts_every_kind_of_path(form: Any, tmp_path: Path) -> None:
    leftover = tmp_path / f"{PREFIX}abcd1234"
    leftover.mkdir()
    assert sweep(form(tmp_path)) == [str(leftover)]
    assert not leftover.exists()


def test_samples_and_their_hashes_accept_every_kind_of_path(form: Any, collect: Path) -> None:
    assert make_sample(form(collect), small=1, large=0) == hash_files(form(collect))


def test_encode_path_accepts_every_kind_of_path(form: Any, tmp_path: Path) -> None:
    assert util.encodePath(form(tmp_path)) == str(tmp_path)


def resolved(options: SSHOptions) -> Destination:
    return resolve_destination("db1", "backup", options)


def paths_of(found: Destination) -> list[object]:
    return [
        found.identities,
        found.certificates,
        found.known_hosts,
        found.agent_socket,
        found.new_keys_file,
        found.connect_timeout,
    ]


def test_options_accept_every_kind_of_path(form: Any, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("ConnectTimeout 7\n")
    options = SSHOptions(
        identity=(form(tmp_path / "id"), form(Path("~/id"))),
        certificate=form(tmp_path / "id-cert.pub"),
        config=form(tmp_path / "config"),
        known_hosts=None if form is os.fsencode else form(tmp_path / "known"),  # bytes are content there
        agent=form(tmp_path / "agent"),
    )
    expected = SSHOptions(
        identity=(str(tmp_path / "id"), "~/id"),
        certificate=str(tmp_path / "id-cert.pub"),
        config=str(tmp_path / "config"),
        known_hosts=None if form is os.fsencode else str(tmp_path / "known"),
        agent=str(tmp_path / "agent"),
    )
    assert paths_of(resolved(options)) == paths_of(resolved(expected))
    assert resolved(options).connect_timeout == 7


def test_a_child_process_gets_the_same_paths(form: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").write_text("")
    relative = form(Path("config"))
    options = SSHOptions(identity=relative, certificate=relative, config=(relative,), known_hosts=b"", agent=relative)
    transport_options = TransportOptions(name="db1", user="backup", ssh=options)
    sent = decode_transport_options(encode_settings(transport_options, Limits(), Retry())).ssh
    here = str(tmp_path / "config")
    assert (sent.identity, sent.certificate, sent.config, sent.agent) == (here, here, (here,), here)
    assert sent.known_hosts == b"", "content stays content"


def test_a_child_process_gets_a_known_hosts_path_of_any_kind_but_bytes(tmp_path: Path) -> None:
    for given in (str(tmp_path), tmp_path, BytesPath(tmp_path)):
        transport_options = TransportOptions(name="db1", user="backup", ssh=SSHOptions(known_hosts=given))
        sent = decode_transport_options(encode_settings(transport_options, Limits(), Retry())).ssh
        assert sent.known_hosts == str(tmp_path)


def test_the_names_of_transports_are_a_type() -> None:
    assert get_args(TransportName) == TRANSPORTS == ("auto", "sftp", "scp", "rcp")
    for name in TRANSPORTS:
        assert RemotePeer("db1", "/c", "/tmp", "backup", transport=name).transport == name


def test_the_public_names_are_these() -> None:
    assert sorted(peerstage.__all__) == [
        "BackupPeer",
        "BandwidthLimit",
        "FleetPlan",
        "FleetReport",
        "FleetRun",
        "Indicators",
        "Limits",
        "LocalPeer",
        "PeerJob",
        "PeerResult",
        "Progress",
        "Reason",
        "RemoteFile",
        "RemotePeer",
        "Retry",
        "SSHOptions",
        "Secret",
        "StageError",
        "StageOptions",
        "StageReport",
        "Verdict",
        "VerifyReport",
        "dask_executor",
        "read_plan",
        "stage_fleet",
        "sweep",
        "verify",
    ]
    for name in peerstage.__all__:
        assert getattr(peerstage, name) is not None
    assert set(peerstage.__all__) <= set(dir(peerstage))


@pytest.mark.usefixtures("fresh_interpreter")
def test_importing_the_package_loads_neither_paramiko_nor_anything_optional() -> None:
    code = "import sys, peerstage; print(set(sys.modules) & {'paramiko', 'scp', 'typer', 'rich', 'asyncssh'} or '')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert out.stdout.strip() == ""


# Help


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_help_shows_only_what_a_user_can_use(kind: type) -> None:
    text = pydoc.render_doc(kind, renderer=pydoc.plaintext)
    described = text.partition("Method resolution order")[2] or text.partition("Methods defined here")[2] or text
    assert set(re.findall(r"__\w+__", described)) <= {"__enter__", "__exit__"}
    assert "dataclass" not in text
    for name in vars(kind):
        if not name.startswith("_"):
            assert re.search(rf"\b{name}\b", text), name


def test_help_of_a_remote_peer_shows_its_methods_and_their_types() -> None:
    text = pydoc.render_doc(RemotePeer, renderer=pydoc.plaintext)
    methods = ("stagePeer", "checkCollectIndicator", "readIndicators", "writeStageIndicator", "executeRemoteCommand")
    for method in (*methods, "cancel"):
        # From Python 3.13 on, long signatures take several lines.
        assert re.search(rf"^ \|  {method}\([\s|]*self", text, re.MULTILINE)
    assert "targetDir: 'StrOrBytesPath'" in text
    assert "transport: 'TransportName'" in text
    assert "__enter__(self)" in text, "mocks with this class as their spec need it"
