"""What is likely behind a step that failed, and the line or the command that would mend it."""

from __future__ import annotations

import base64
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from peerstage.cli.spec import Spec
from peerstage.errors import (
    LoginAttempt,
    NoSFTP,
    ProtocolError,
    RemoteNotFound,
    RevokedHostKey,
    StageError,
    UnknownHostKey,
    escape,
)
from peerstage.reasons import Reason
from peerstage.session.config import Destination, hop_options, resolve_destination
from peerstage.session.host_key import trust_command
from peerstage.session.known_hosts import KnownHosts
from peerstage.session.offers import Offers
from peerstage.session.options import SSHOptions
from peerstage.session.ssh_config import SSHConfig

_SSHD = "/etc/ssh/sshd_config on the peer"
_SUBSYSTEM = f"`Subsystem sftp internal-sftp` in {_SSHD}, and restart its sshd"
_PLACE = re.compile(r"((?:/|~)[^\s:]*):(\d+)")


class Mend(NamedTuple):
    """What is likely behind a failure, and what would mend it."""

    cause: str
    mend: str


@dataclass
class Scene:
    """What is known about the way so far: the peer, how it was asked for, and what the configuration made of that."""

    spec: Spec
    options: SSHOptions
    config: SSHConfig | None = None
    destination: Destination | None = None

    @property
    def host_block(self) -> str:
        """Where in the user's own configuration a line for this peer belongs."""
        return f"below `Host {self.spec.host}` in ~/.ssh/config"

    def setting(self, keyword: str) -> str:
        """Return where *keyword* is configured; empty if it is not, or given by an option."""
        setting = None if self.config is None else self.config.first(keyword.lower())
        return (
            ""
            if setting is None or not setting.number
            else f"`{keyword} {' '.join(setting.words)}` in {setting.path}:{setting.number}"
        )


def mend(step: str, error: StageError, scene: Scene) -> Mend:
    """Return what is to be said about *step*, which failed with *error*."""
    found = _MENDS[step](error, scene)
    return Mend(escape(found.cause), escape(found.mend))


def _configuration(error: StageError, scene: Scene) -> Mend:
    writable = re.search(r"The ssh configuration (.+?) can be written by others", error.message)
    if writable:
        path = writable[1]
        command = f"chmod go-w {shlex.quote(path)}"
        if os.path.exists(path) and os.stat(path).st_uid not in (0, os.geteuid()):
            command = f"chown {os.geteuid()} {shlex.quote(path)} && {command}"
        return Mend("whoever can write the file decides where ssh connects to", f"`{command}`")
    place = _PLACE.search(error.message)
    if place:
        return Mend("a line of ssh's configuration can not be honoured", f"correct or remove {place[0]}")
    return Mend("what the options or the configuration ask for can not be honoured", "see the message")


def _name(error: StageError, scene: Scene) -> Mend:
    configured = scene.setting("HostName")
    if configured:
        return Mend("the name that is configured is not known to DNS or /etc/hosts", f"correct {configured}")
    return Mend(
        "the name is not known to DNS or /etc/hosts",
        f"correct the name, or add `HostName ADDRESS` {scene.host_block}",
    )


def _port(scene: Scene) -> str:
    """Return where the port that was tried comes from, and where another one belongs."""
    if scene.options.port is not None:
        return f"give another --port than {scene.options.port}"
    configured = scene.setting("Port")
    return f"correct {configured}" if configured else f"add `Port NUMBER` {scene.host_block}"


def _tcp(error: StageError, scene: Scene) -> Mend:
    behind = scene.destination.hops if scene.destination is not None else ()
    if behind and "dministratively prohibited" in error.message:
        where = f"/etc/ssh/sshd_config on {behind[-1]}"
        return Mend(
            f"the jump host {behind[-1]} forwards nothing for this login", f"`AllowTcpForwarding yes` in {where}"
        )
    if "refused" in error.message or behind:
        listens = "nothing listens on that port there"
        return Mend(listens, f"start sshd on the peer; or if it listens on another port, {_port(scene)}")
    return Mend(
        "the peer is down, its address is wrong, or a firewall drops what comes",
        f"let the firewall pass the port; or if that is not its port, {_port(scene)}",
    )


def _jump(error: StageError, scene: Scene) -> Mend:
    hops = () if scene.destination is None else scene.destination.hops
    at = next((n for n, hop in enumerate(hops) if error.message.startswith(f"Jump host {hop}: ")), len(hops) - 1)
    name = str(hops[at])
    where = scene.setting("ProxyJump") or f"--jump {scene.options.jump}"
    if isinstance(error, UnknownHostKey):
        theirs = hop_options(scene.options, hops[at], hops[:at])
        command = trust_command(resolve_destination(hops[at].host, hops[at].user, theirs))
        return Mend(f"the host key of {name} is not known", f"compare the fingerprint, then `{command}`; see {where}")
    return Mend(
        f"the jump host {name} can not be reached or passed", f"`peerstage doctor` for {name} itself; see {where}"
    )


def _banner(error: StageError, scene: Scene) -> Mend:
    if scene.destination is not None and scene.destination.proxy_command is not None:
        return Mend("what the ProxyCommand leads to is no SSH server", f"correct {scene.setting('ProxyCommand')}")
    if "within" in error.message:
        return Mend(
            "something accepts connections there and says nothing: no SSH server, or one that hangs", _port(scene)
        )
    if re.search(r"saying '(HTTP/|\d{3}[ -])", error.message):
        return Mend("what answers on that port is no SSH server", _port(scene))
    if "hangs up" in error.message or "closed the connection" in error.message:
        return Mend(
            "the server turns this address away, or is full",
            f"`MaxStartups` or `PerSourcePenalties` in {_SSHD}, or its /etc/hosts.deny; or {_port(scene)}",
        )
    return Mend("what answers on that port is no SSH server", _port(scene))


def _key_exchange(error: StageError, scene: Scene) -> Mend:
    for word, line in (
        ("kex", "KexAlgorithms +curve25519-sha256"),
        ("host key", "HostKeyAlgorithms +ssh-ed25519,rsa-sha2-512"),
        ("cipher", "Ciphers +aes128-gcm@openssh.com"),
        ("mac", "MACs +hmac-sha2-256"),
    ):
        if word in error.message.lower() and "No algorithm in common" in error.message:
            return Mend("the server offers only algorithms that are too old", f"`{line}` in {_SSHD}")
    if "strict key exchange" in error.message:
        return Mend("the server is open to CVE-2023-48795", f"`Ciphers +aes128-gcm@openssh.com` in {_SSHD}")
    return Mend(
        "large packets do not get through (MTU), or the server hangs", "compare `ssh -v`; see the peer's own sshd log"
    )


def _host_key(error: StageError, scene: Scene) -> Mend:
    trust = "" if scene.destination is None else trust_command(scene.destination)
    if isinstance(error, RevokedHostKey):
        marked = re.search(r"marked @revoked in (.+?:\d+):", error.message)
        where = f" in {marked[1]}" if marked else ""
        return Mend(f"the key is marked as stolen{where}", f"a new host key on the peer, then `{trust}`")
    if error.message.startswith("The host shows the RSA key "):
        return Mend("the peer's RSA key is too small (RequiredRSASize)", "`ssh-keygen -A` and a restart of its sshd")
    if scene.options.host_key is not None and scene.options.host_key.startswith("SHA256:"):
        return Mend("another key than the one that --host-key names", "the right fingerprint with --host-key")
    # What a message quotes a host had a say in, so that no command is taken from there.
    known = KnownHosts.read(()) if scene.destination is None else KnownHosts.read(scene.destination.known_hosts)
    name = ("", 22) if scene.destination is None else scene.destination.known_as
    removal, authorities = known.removal(*name), known.authorities(*name)
    if authorities and not removal:
        place, host = next(iter(authorities.values())), shlex.quote(name[0])
        return Mend(
            f"no valid certificate of the authority in {place} is shown for {name[0]}",
            f"`ssh-keygen -s AUTHORITY -h -I {host} -n {host} HOSTKEY.pub`, and `HostCertificate FILE` in {_SSHD}",
        )
    if isinstance(error, UnknownHostKey) and trust and not removal:
        return Mend("the peer was never reached from here", f"compare the fingerprint, then `{trust}`")
    steps = [f"`{command}`" for command in (removal, trust) if command]
    return Mend(
        "the peer has a new key, or somebody is between you and it",
        f"compare the fingerprint on the peer itself; only then {', '.join(steps) or 'correct known_hosts'}",
    )


def _login(error: StageError, scene: Scene) -> Mend:
    if scene.destination is None:
        return Mend("", "")
    place, unusable = scene.destination, []

    def tell(one: LoginAttempt) -> None:
        if one.reason is not Reason.AGENT_EMPTY:
            unusable.append((one.label, one.outcome))

    with Offers(place, scene.options, tell) as offers:
        keys = [(offer.label, offer.blob) for offer in offers]
    for label, why in unusable:
        if "others can read it" in why:
            return Mend(f"{label} is open to others, so that ssh does not use it", f"`chmod 600 {label}`")
    if "MaxAuthTries" in error.message and len(keys) > 1:
        return Mend(
            "too many keys were offered before the right one",
            f"`IdentitiesOnly yes` and `IdentityFile FILE` {scene.host_block}",
        )
    if keys:
        line = f"{keys[0][1][4 : 4 + keys[0][1][3]].decode('ascii', 'replace')} {base64.b64encode(keys[0][1]).decode()}"
        other = scene.setting("User") or "the user before the @"
        return Mend(
            f"the peer does not have {keys[0][0]} for {place.user}, or that is the wrong user",
            f"append `{line}` to ~{place.user}/.ssh/authorized_keys on the peer (mode 0600); or correct {other}",
        )
    for label, why in unusable:
        if label.startswith("agent at"):
            configured = scene.setting("IdentityAgent") or "SSH_AUTH_SOCK"
            return Mend(
                f"the {label} does not work ({why}), and there is no other key",
                f"start it anew (`eval $(ssh-agent)`, `ssh-add`), correct {configured}, or name a key with --identity",
            )
        if "passphrase" in why:
            return Mend(f"{label} needs a passphrase, and nobody is asked", f"`ssh-add {label}`, or a key without one")
        configured = scene.setting("IdentityFile") or "--identity"
        return Mend(f"{label} can not be used: {why}", f"correct {configured}")
    return Mend(
        "there is no key to offer",
        f"`ssh-keygen -t ed25519`, then append ~/.ssh/id_ed25519.pub to the peer's ~{place.user}/.ssh/authorized_keys",
    )


def _subsystem(error: StageError, scene: Scene) -> Mend:
    if isinstance(error, NoSFTP):
        return Mend("its sshd has no SFTP server", _SUBSYSTEM)
    if isinstance(error, ProtocolError):
        return Mend(
            "a login script of that user prints text where a protocol is spoken",
            f"remove the output from ~{scene.spec.user}/.bashrc (or the like) on the peer; or {_SUBSYSTEM}",
        )
    if "no scp program" in error.message:
        return Mend("the peer has neither an SFTP server nor an scp program", _SUBSYSTEM)
    return Mend(
        "the peer lets this login open no session",
        f"`ForceCommand`, `MaxSessions` and `PermitTTY` in {_SSHD}, or command= in its authorized_keys; {_SUBSYSTEM}",
    )


def _directory(error: StageError, scene: Scene) -> Mend:
    directory, user = shlex.quote(scene.spec.directory), shlex.quote(scene.spec.user)
    if isinstance(error, RemoteNotFound):
        return Mend(
            "the peer does not collect there, or has not yet", f"`mkdir -p {directory}` on the peer; or another DIR"
        )
    if "ermission" in error.message:
        return Mend(
            f"{scene.spec.user} may not list it", f"`chmod u+rx {directory}` or `chown {user} {directory}` on the peer"
        )
    return Mend("it is no directory, or can not be listed", f"`ls -ld {directory}` on the peer tells; or another DIR")


def _indicator(error: StageError, scene: Scene) -> Mend:
    path = shlex.quote(os.fsdecode(error.path or b""))
    return Mend(
        "the peer has not finished collecting, or its indicator has another name",
        f"let it collect (by hand: `touch {path}` on the peer), or name its indicator with --indicator",
    )


def _write(error: StageError, scene: Scene) -> Mend:
    directory, user = shlex.quote(scene.spec.directory), shlex.quote(scene.spec.user)
    if error.message.startswith("A file of no use"):
        return Mend(
            "the connection ended in the middle", f"`rm -f {shlex.quote(os.fsdecode(error.path or b''))}` on the peer"
        )
    return Mend(
        f"{scene.spec.user} may not write there, or the disk is full: the stage indicator could not be written either",
        f"`chmod u+w {directory}` or `chown {user} {directory}` on the peer; `df {directory}` if that is not it",
    )


_MENDS: dict[str, Callable[[StageError, Scene], Mend]] = {
    "configuration": _configuration,
    "name": _name,
    "jump host": _jump,
    "TCP": _tcp,
    "banner": _banner,
    "key exchange": _key_exchange,
    "host key": _host_key,
    "login": _login,
    "SFTP or SCP": _subsystem,
    "SFTP": _subsystem,
    "SCP": _subsystem,
    "directory": _directory,
    "indicator": _indicator,
    "write": _write,
}
