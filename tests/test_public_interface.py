"""What users are given: paths of every kind, and help that shows nothing but what they can use."""

from __future__ import annotations

import os
import pydoc
import re
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import pytest

import peerstage
import peerstage.testing
from peerstage import Limits, LocalPeer, RemotePeer, Retry, SSHOptions, sweep, util
from peerstage.isolation.messages import route_of, settings
from peerstage.landing.private import PREFIX
from peerstage.session.config import Destination, resolve_destination
from peerstage.testing import Source, TransportContract, digests, make_sample
from peerstage.transport.base import Transport
from peerstage.transport.choose import TRANSPORTS, Route, TransportName

_PUBLIC = [getattr(package, name) for package in (peerstage, peerstage.testing) for name in package.__all__]
#: All but what is there to be inherited from, errors and enums.
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
    """Turns a path into one of the kinds of paths that Python knows."""
    return FORMS[request.param]


def test_a_local_peer_takes_every_kind_of_path(form: Any, collect: Path, target: Path) -> None:
    (collect / "cback.collect").touch()
    peer = LocalPeer("here", form(collect))
    assert peer.checkCollectIndicator(form(Path("cback.collect")))
    assert peer.stagePeer(form(target)) == 1
    peer.writeStageIndicator(form(Path("cback.stage")))
    assert (collect / "cback.stage").exists()
    assert (target / "cback.collect").exists()


def test_a_remote_peer_takes_every_kind_of_path(form: Any, tmp_path: Path) -> None:
    peer = RemotePeer("db1", form(tmp_path), form(tmp_path / "w"), "backup")
    assert (peer.collectDir, peer.workingDir) == (str(tmp_path), str(tmp_path / "w"))


def test_sweep_takes_every_kind_of_path(form: Any, tmp_path: Path) -> None:
    leftover = tmp_path / f"{PREFIX}x"
    leftover.mkdir()
    assert sweep(form(tmp_path)) == [str(leftover)]
    assert not leftover.exists()


def test_samples_and_their_digests_take_every_kind_of_path(form: Any, collect: Path) -> None:
    assert make_sample(form(collect), small=1, large=0) == digests(form(collect))


def test_encode_path_takes_every_kind_of_path(form: Any, tmp_path: Path) -> None:
    assert util.encodePath(form(tmp_path)) == str(tmp_path)


def resolved(options: SSHOptions) -> Destination:
    return resolve_destination("db1", "backup", options)


def paths_of(found: Destination) -> list[object]:
    return [
        found.identities,
        found.certificates,
        found.known_hosts,
        found.agent,
        found.learns_into,
        found.connect_timeout,
    ]


def test_options_take_every_kind_of_path(form: Any, tmp_path: Path) -> None:
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


def test_paths_of_every_kind_lead_a_child_process_to_the_same_files(
    form: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").write_text("")
    relative = form(Path("config"))
    options = SSHOptions(identity=relative, certificate=relative, config=(relative,), known_hosts=b"", agent=relative)
    route = Route(name="db1", user="backup", ssh=options)
    sent = route_of(settings(route, Limits(), Retry())).ssh
    here = str(tmp_path / "config")
    assert (sent.identity, sent.certificate, sent.config, sent.agent) == (here, here, (here,), here)
    assert sent.known_hosts == b"", "content stays content"


def test_a_known_hosts_file_may_be_any_path_but_bytes_to_a_child_process(tmp_path: Path) -> None:
    for given in (str(tmp_path), tmp_path, BytesPath(tmp_path)):
        route = Route(name="db1", user="backup", ssh=SSHOptions(known_hosts=given))
        assert route_of(settings(route, Limits(), Retry())).ssh.known_hosts == str(tmp_path)


def test_the_names_of_transports_are_a_type() -> None:
    assert get_args(TransportName) == TRANSPORTS == ("auto", "sftp", "scp", "rcp")
    for name in TRANSPORTS:
        assert RemotePeer("db1", "/c", "/tmp", "backup", transport=name).transport == name


# Help


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_help_shows_what_a_user_can_use_and_nothing_of_how_it_is_made(kind: type) -> None:
    text = pydoc.render_doc(kind, renderer=pydoc.plaintext)
    described = text.partition("Method resolution order")[2] or text.partition("Methods defined here")[2] or text
    assert set(re.findall(r"__\w+__", described)) <= {"__enter__", "__exit__"}
    assert "dataclass" not in text
    assert "PARITY" not in text
    for name in vars(kind):
        if not name.startswith("_"):
            assert re.search(rf"\b{name}\b", text), name


def test_help_of_a_remote_peer_shows_its_methods_and_which_types_they_take() -> None:
    text = pydoc.render_doc(RemotePeer, renderer=pydoc.plaintext)
    for method in ("stagePeer", "checkCollectIndicator", "writeStageIndicator", "executeRemoteCommand", "cancel"):
        assert re.search(rf"^ \|  {method}\(self", text, re.MULTILINE)
    assert "targetDir: 'StrOrBytesPath'" in text
    assert "transport: 'TransportName'" in text
    assert "__enter__(self)" in text, "whoever replaces a peer by a mock with its spec wants its with block"
