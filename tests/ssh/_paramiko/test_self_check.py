"""A paramiko that lacks what we use, or that bypasses our overrides, is refused before anything is sent or trusted."""

from __future__ import annotations

import functools
import getpass
import inspect
import re
import subprocess
import sys
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import paramiko
import pytest
from paramiko.auth_handler import AuthOnlyHandler
from paramiko.packet import Packetizer
from paramiko.transport import ChannelMap

from peerstage import RemotePeer, Retry, SSHOptions
from peerstage.errors import ConnectError, NotAvailable, StageError
from peerstage.exit_codes import ExitCode, code_of
from peerstage.reasons import Reason
from peerstage.records import Limits
from peerstage.ssh._paramiko.channels import BufferedChannels
from peerstage.ssh._paramiko.client_transport import ClientTransport
from peerstage.ssh._paramiko.packetizer import BoundedPacketizer
from peerstage.ssh._paramiko.rekeying import RekeyingTransport
from peerstage.ssh._paramiko.self_check import TESTED_VERSIONS, check_paramiko
from support.ssh_server import closes_at_once, count_connections, listening
from support.sshd import Sshd

QUICK = Limits(login_timeout=2.0, reply_timeout=2.0, stall_timeout=2.0, deadline=8.0)


@pytest.fixture(autouse=True)
def unchecked() -> Iterator[None]:
    """A process that has not checked paramiko yet."""
    check_paramiko.cache_clear()
    yield
    check_paramiko.cache_clear()


def refusal_of(options: SSHOptions, collect: Path) -> StageError:
    """Return the error with which an operation on a peer fails."""
    user = getpass.getuser()
    peer = RemotePeer("127.0.0.1", str(collect), "/tmp", user, ssh=options, limits=QUICK, retry=Retry(tries=1))
    with pytest.raises(StageError) as caught:
        peer.writeStageIndicator()
    return caught.value


def assert_one_line_with_the_next_step(error: StageError) -> None:
    assert type(error) is NotAvailable
    assert error.reason is Reason.PARAMIKO_INCOMPATIBLE
    assert code_of(error) is ExitCode.NOT_AVAILABLE
    assert str(error).isprintable()
    assert f"paramiko {paramiko.__version__} " in str(error)
    assert f'pip install "paramiko{TESTED_VERSIONS}"' in str(error)


def test_the_installed_paramiko_passes() -> None:
    check_paramiko()


def test_the_tested_versions_are_the_ones_in_the_requirement() -> None:
    project = Path(__file__).parents[3] / "pyproject.toml"
    assert f'"paramiko{TESTED_VERSIONS}"' in project.read_text()


def test_the_check_runs_once_per_process_and_then_costs_nothing() -> None:
    check_paramiko()
    assert min(timeit.repeat(check_paramiko, number=1000, repeat=3)) < 0.01, "under 10 microseconds each"


# Missing or changed members.

Patch = Callable[[pytest.MonkeyPatch], None]


def renames(owner: type, name: str) -> Patch:
    """Return a patch that gives a method or a table another name."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        member = inspect.getattr_static(owner, name)
        monkeypatch.delattr(owner, name)
        monkeypatch.setattr(owner, f"{name}_renamed", member, raising=False)

    return patch


def replaces(owner: type, name: str, member: object) -> Patch:
    return lambda monkeypatch: monkeypatch.setattr(owner, name, member)


def drops(owner: type, name: str) -> Patch:
    """Return a patch after which objects of *owner* no longer have the attribute *name*."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        create = owner.__init__  # type: ignore[misc]

        def create_without(self: object, *args: Any, **kwargs: Any) -> None:
            create(self, *args, **kwargs)
            delattr(self, name)

        monkeypatch.setattr(owner, "__init__", create_without)

    return patch


CHANGES: dict[str, tuple[str, Patch]] = {
    "a renamed method": ("Transport._verify_key", renames(paramiko.Transport, "_verify_key")),
    "a renamed method that a table of handlers refers to": ("Transport", renames(paramiko.Transport, "_parse_newkeys")),
    "a renamed table": ("Transport._mac_info", renames(paramiko.Transport, "_mac_info")),
    "a renamed method of the packet layer": ("Packetizer._trigger_rekey", renames(Packetizer, "_trigger_rekey")),
    "a renamed property": ("Packetizer.closed", renames(Packetizer, "closed")),
    "a renamed method of the channel table": ("ChannelMap.put", renames(ChannelMap, "put")),
    "a new parameter": (
        "Transport._send_message",
        replaces(paramiko.Transport, "_send_message", lambda self, data, flags=0: None),
    ),
    "another parameter": (
        "Packetizer.read_all",
        replaces(Packetizer, "read_all", lambda self, size, check_rekey=False: b""),
    ),
    "another default": ("Packetizer.read_all", replaces(Packetizer, "read_all", lambda self, n, check_rekey=True: b"")),
    "a property that was a method": ("Packetizer.need_rekey", replaces(Packetizer, "need_rekey", property(bool))),
    "a method that was a property": ("Packetizer.closed", replaces(Packetizer, "closed", lambda self: False)),
    "a dropped attribute": ("Transport.clear_to_send_lock", drops(paramiko.Transport, "clear_to_send_lock")),
    "a dropped attribute of channels": ("Channel.in_buffer", drops(paramiko.Channel, "in_buffer")),
    "a dropped attribute of logins": ("Auth.auth_event", drops(AuthOnlyHandler, "auth_event")),
    "a table of another type": ("Transport._kex_info", replaces(paramiko.Transport, "_kex_info", ())),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_member_is_refused_before_connecting(
    change: str, monkeypatch: pytest.MonkeyPatch, collect: Path
) -> None:
    name, patch = CHANGES[change]
    handler, connections = count_connections(closes_at_once)
    with listening(handler) as port:
        patch(monkeypatch)
        error = refusal_of(SSHOptions(port=port, config=(), known_hosts=(), agent=False), collect)
    assert_one_line_with_the_next_step(error)
    assert re.search(rf" lacks or changed {name}\b", str(error))
    assert connections == []


@pytest.mark.usefixtures("fresh_interpreter")
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("paramiko.transport", "ChannelMap"),
        ("paramiko.packet", "NeedRekeyException"),
        ("paramiko.kex_curve25519", "KexCurve25519"),
        ("paramiko.common", "MSG_NAMES"),
        ("paramiko.auth_handler", "AuthOnlyHandler"),
    ],
)
def test_a_missing_class_or_table_is_refused_too(module: str, name: str) -> None:
    script = (
        f"import paramiko, {module}\n"
        f"del {module}.{name}\n"
        "import peerstage.ssh.session\n"
        "from peerstage.ssh._paramiko.self_check import check_paramiko\n"
        "check_paramiko()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert f"NotAvailable: paramiko {paramiko.__version__} lacks or changed {module}.{name}, " in done.stderr


# Bypassed overrides: without ours, the inherited method runs, as if paramiko no longer called ours.


@functools.cache
def overriding(ours: type, theirs: type) -> frozenset[str]:
    """Return the methods and properties of *ours*, and of classes between, that override one of *theirs*."""
    between = [kind for kind in ours.__mro__ if issubclass(kind, theirs) and kind is not theirs]
    members = {name: member for kind in between for name, member in vars(kind).items()}
    return frozenset(
        name
        for name, member in members.items()
        if hasattr(theirs, name) and not name.startswith("__") and isinstance(member, (FunctionType, property))
    )


def test_every_override_has_to_run_except_those_that_a_connection_may_not_need() -> None:
    conditional = {
        *("_parse_disconnect", "_send_user_message"),  # on SSH_MSG_DISCONNECT; called by our own code, too
        "_auth_trigger",  # after the key exchange, see `require_overrides`
        *("_sanitize_window_size", "run"),  # for each channel; for each connection: no check depends on them
    }
    assert overriding(ClientTransport, paramiko.Transport) == ClientTransport.OVERRIDES | conditional
    conditional = {"start_handshake", "_trigger_rekey"}  # does nothing; only when keys are due
    assert overriding(BoundedPacketizer, Packetizer) == BoundedPacketizer.OVERRIDES | conditional


def owner_of(name: str) -> type:
    return next(kind for kind in (BoundedPacketizer, ClientTransport, RekeyingTransport) if name in vars(kind))


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("name", sorted(BoundedPacketizer.OVERRIDES | ClientTransport.OVERRIDES))
def test_a_bypassed_override_is_refused_before_the_login(
    name: str, monkeypatch: pytest.MonkeyPatch, own_sshd: Callable[..., Sshd], collect: Path
) -> None:
    sshd = own_sshd()
    monkeypatch.delattr(owner_of(name), name)
    error = refusal_of(sshd.options(), collect)
    assert "Postponed" not in sshd.log
    assert "Accepted" not in sshd.log
    if name == "readline" and type(error) is ConnectError:
        return  # paramiko's own method took what had arrived behind the line, so that the key exchange failed
    assert_one_line_with_the_next_step(error)
    assert f"does not call {name}," in str(error)


def test_another_packet_layer_is_refused_before_the_login(
    monkeypatch: pytest.MonkeyPatch, own_sshd: Callable[..., Sshd], collect: Path
) -> None:
    create = paramiko.Transport.__init__

    def create_with_its_own(self: paramiko.Transport, sock: Any, packetizer_class: Any, **options: Any) -> None:
        create(self, sock, **options)

    sshd = own_sshd()
    check_paramiko()
    monkeypatch.setattr(paramiko.Transport, "__init__", create_with_its_own)
    error = refusal_of(sshd.options(), collect)
    assert_one_line_with_the_next_step(error)
    assert "does not use BoundedPacketizer and BufferedChannels," in str(error)
    assert "Accepted" not in sshd.log


def test_a_login_after_which_keys_would_not_be_renewed_is_refused(
    monkeypatch: pytest.MonkeyPatch, own_sshd: Callable[..., Sshd], collect: Path
) -> None:
    monkeypatch.delattr(ClientTransport, "_auth_trigger")
    sshd = own_sshd()
    error = refusal_of(sshd.options(), collect)
    assert_one_line_with_the_next_step(error)
    assert "does not call _auth_trigger," in str(error)
    assert "Starting session" not in sshd.log


def test_a_channel_without_our_buffers_is_refused_before_it_is_used(
    monkeypatch: pytest.MonkeyPatch, own_sshd: Callable[..., Sshd], collect: Path
) -> None:
    monkeypatch.delattr(BufferedChannels, "put")
    sshd = own_sshd()
    error = refusal_of(sshd.options(), collect)
    assert_one_line_with_the_next_step(error)
    assert "does not use the buffers that BufferedChannels.put gives to a channel," in str(error)
    assert "Starting session" not in sshd.log
