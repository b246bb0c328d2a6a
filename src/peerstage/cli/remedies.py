"""The likely cause of a failure and the next step, from its reason, its attributes and the configuration alone."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable

from peerstage.cli.diagnosis import Diagnosis, Remedy
from peerstage.cli.file_remedies import FILE_REMEDIES, explain_write
from peerstage.cli.login_remedies import LOGIN_REMEDIES
from peerstage.errors import ConnectError, StageError, escape
from peerstage.reasons import Reason
from peerstage.session.known_hosts import KnownHosts
from peerstage.session.options import several

#: The keyword that settles each kind of algorithm, and a value that servers and clients of today have in common.
_ALGORITHMS = {
    "kex": ("KexAlgorithms", "+curve25519-sha256"),
    "host key": ("HostKeyAlgorithms", "+ssh-ed25519,rsa-sha2-512"),
    "cipher": ("Ciphers", "+aes128-gcm@openssh.com"),
    "mac": ("MACs", "+hmac-sha2-256"),
}


def find_remedy(error: StageError, diagnosis: Diagnosis) -> Remedy:
    """Return the likely cause of *error* at the step of *diagnosis*, and what to do; both in printable characters."""
    cause, action = _explain_hop(error, diagnosis) if error.hop else _explain(error, diagnosis)
    return Remedy(escape(cause), escape(action))


def _explain(error: StageError, d: Diagnosis) -> Remedy:
    if d.step == "write" and error.reason not in _OF_CONNECTION:
        return explain_write(error, d)
    remedy = _REMEDIES.get(error.reason)
    if remedy is None:
        return Remedy(
            error.reason.meaning.rstrip("."), f"run it again with --verbose; see the log of sshd on {d.machine}"
        )
    return remedy(error, d)


def _explain_hop(error: StageError, d: Diagnosis) -> Remedy:
    """Return what is to be said about a jump host: the same as about a peer, from its own settings."""
    hop = d.of_hop(error.hop)
    if hop is None:
        return Remedy(
            f"the jump host {error.hop} cannot be reached or passed", f"run `peerstage doctor` for {error.hop} itself"
        )
    found = _explain(error, hop)
    return Remedy(f"jump host {error.hop}: {found.cause}", f"{found.action}; or {hop.another_hop}")


# Configuration.


def _insecure(error: StageError, d: Diagnosis) -> Remedy:
    path = d.place(error.location)
    command = f"chmod go-w {shlex.quote(path)}"
    if os.path.exists(path) and os.stat(path).st_uid not in (0, os.geteuid()):
        command = f"chown {os.geteuid()} {shlex.quote(path)} && {command}"
    return Remedy("whoever can write the file decides where ssh connects to", f"run `{command}`")


def _unreadable(error: StageError, d: Diagnosis) -> Remedy:
    path = d.place(error.location)
    what = "cannot be read" if os.path.exists(path) else "does not exist"
    if d.options.config:
        return Remedy(f"{path} {what}", f"give another --config than {path}")
    return Remedy(f"{path} {what}", f"run `chmod u+r {shlex.quote(path)}`")


def _unknown_keyword(error: StageError, d: Diagnosis) -> Remedy:
    return Remedy(
        "the keyword is misspelled, or of another version of ssh",
        f"correct {d.place(error.location)}; or name the keyword with `IgnoreUnknown` in a line above",
    )


def _unsupported_keyword(error: StageError, d: Diagnosis) -> Remedy:
    return Remedy(
        "the line may change which host is reached or trusted, in a way that is not supported here",
        f"remove {d.place(error.location)}; or give a file without it with --config",
    )


def _invalid_value(error: StageError, d: Diagnosis) -> Remedy:
    place = d.place(error.location)
    return Remedy("the value has no meaning", f"correct {place}" if place else "correct the option or the line above")


# Name, address, port.


def _name(error: StageError, d: Diagnosis) -> Remedy:
    configured = d.setting("HostName")
    if configured:
        return Remedy("DNS and /etc/hosts do not know the configured name", f"correct {configured}")
    correct = "correct the name" if d.behind is None else d.another_hop
    return Remedy(
        "DNS and /etc/hosts do not know the name, and no `HostName` is configured for it",
        f"{correct}, or {d.correction('HostName', 'ADDRESS')}",
    )


def _resolver(error: StageError, d: Diagnosis) -> Remedy:
    return Remedy(
        "the name servers do not answer",
        f"check those in /etc/resolv.conf; or {d.correction('HostName', 'ADDRESS')}",
    )


def _tcp(error: StageError, d: Diagnosis) -> Remedy:
    port = d.correction("Port", "NUMBER")
    hops = d.destination.hops if d.destination is not None else ()
    if error.reason is Reason.FORWARDING_REFUSED and hops:
        return Remedy(
            f"the jump host {hops[-1]} forwards nothing for this login",
            f"set `AllowTcpForwarding yes` in /etc/ssh/sshd_config on {hops[-1]}, and restart its sshd",
        )
    if error.reason in (Reason.CONNECTION_REFUSED, Reason.HOP_CANNOT_CONNECT):
        where = f", or {hops[-1]} cannot reach it" if hops else ""
        return Remedy(f"nothing listens on that port there{where}", f"start sshd on {d.machine}; or {port}")
    if error.reason is Reason.HOST_UNREACHABLE:
        return Remedy("no route leads to that address", f"check the network; or {d.correction('HostName', 'ADDRESS')}")
    return Remedy(
        f"{d.machine} is down, its address is wrong, or a firewall drops packets to it",
        f"let the firewall pass the port; or if sshd listens on another one, {port}",
    )


def _bind(error: StageError, d: Diagnosis) -> Remedy:
    return Remedy("this machine does not have that address", d.correction("BindAddress", "ADDRESS"))


# What answers there.


def _proxy_command(error: StageError, d: Diagnosis) -> Remedy:
    return Remedy("the ProxyCommand does not lead to an SSH server", d.correction("ProxyCommand", "COMMAND"))


def _banner(error: StageError, d: Diagnosis) -> Remedy:
    if d.destination is not None and d.destination.proxy_command is not None:
        return _proxy_command(error, d)
    port = d.correction("Port", "NUMBER")
    if error.reason is Reason.BANNER_TIMEOUT:
        return Remedy("something accepts connections there and says nothing: no SSH server, or one that hangs", port)
    if error.reason is Reason.CLOSED_BEFORE_BANNER:
        return Remedy(
            "the server turns this address away, or is full",
            f"check `MaxStartups` and `PerSourcePenalties` in {d.sshd_config}, and its /etc/hosts.deny; or {port}",
        )
    return Remedy("what answers on that port is no SSH server", port)


def _key_exchange(error: StageError, d: Diagnosis) -> Remedy:
    kind = error.algorithm if isinstance(error, ConnectError) else ""
    if kind in _ALGORITHMS:
        keyword, value = _ALGORITHMS[kind]
        configured = d.setting(keyword)
        ours = f"; or correct {configured}" if configured else ""
        return Remedy(
            "the server offers only algorithms that are too old, or that the configuration here excludes",
            f"{d.sshd_setting(f'{keyword} {value}')}{ours}",
        )
    if error.reason is Reason.STRICT_KEX_MISSING:
        return Remedy(
            "the server is open to CVE-2023-48795",
            f"update it; or {d.sshd_setting('Ciphers +aes128-gcm@openssh.com')}",
        )
    return Remedy(
        "large packets do not get through (MTU), or the server hangs",
        f"compare with `ssh -v {d.host}`; see the log of sshd on {d.machine}",
    )


def _ended(error: StageError, d: Diagnosis) -> Remedy:
    return Remedy(
        "the server ended the connection: it is full, turns this address or user away, or failed",
        f"see the log of sshd on {d.machine}: `journalctl -u ssh`",
    )


# Host keys. What a message quotes a host had a say in, so that no command is taken from there.


def _unknown_host_key(error: StageError, d: Diagnosis) -> Remedy:
    if d.trust:
        return Remedy(f"{d.machine} was never reached from here", f"compare the fingerprint, and run `{d.trust}`")
    named = d.setting("UserKnownHostsFile")
    if d.options.known_hosts is not None:
        named = f"--known-hosts {' '.join(map(str, several(d.options.known_hosts)))}"
    return Remedy(
        "no host key can be remembered, as no file is named for it",
        f"remove {named}, then compare the fingerprint, and run `{d.trust_as_usual}`",
    )


def _other_host_key(error: StageError, d: Diagnosis) -> Remedy:
    removal = "" if d.destination is None else _known_hosts(d).removal(*d.destination.known_as)
    steps = ", then run ".join(f"`{command}`" for command in (removal, d.trust) if command)
    return Remedy(
        f"{d.machine} has a new key, or somebody is between you and it",
        f"compare the fingerprint on {d.machine} itself, and only then "
        + (f"run {steps}" if steps else f"correct {d.place(error.location)}"),
    )


def _certificate(error: StageError, d: Diagnosis) -> Remedy:
    if d.destination is None:
        return _other_host_key(error, d)
    name = d.destination.known_as
    place = next(iter(_known_hosts(d).authorities(*name).values()), "known_hosts")
    host = shlex.quote(name[0])
    return Remedy(
        f"{d.machine} shows no valid certificate of the authority in {place} for {name[0]}",
        f"sign its key with `ssh-keygen -s AUTHORITY -h -I {host} -n {host} HOSTKEY.pub`, and "
        + d.sshd_setting("HostCertificate FILE"),
    )


def _unknown_certificate(error: StageError, d: Diagnosis) -> Remedy:
    authorities = {} if d.destination is None else _known_hosts(d).authorities(*d.destination.known_as)
    return _certificate(error, d) if authorities else _unknown_host_key(error, d)


def _revoked(error: StageError, d: Diagnosis) -> Remedy:
    return Remedy(
        f"the key is marked as stolen in {d.place(error.location)}",
        f"give {d.machine} a new host key" + (f", and run `{d.trust}`" if d.trust else ""),
    )


def _not_pinned(error: StageError, d: Diagnosis) -> Remedy:
    return Remedy(
        f"another key than the one that --host-key names: {d.machine} has a new one, or somebody is between",
        f"give another --host-key than {d.options.host_key}, if `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on "
        f"{d.machine} itself shows another",
    )


def _small_host_key(error: StageError, d: Diagnosis) -> Remedy:
    configured = d.setting("RequiredRSASize")
    ours = f"; or correct {configured}" if configured else ""
    return Remedy(
        f"the RSA key of {d.machine} is too small (RequiredRSASize)",
        f"run `ssh-keygen -A` on {d.machine}, which makes an Ed25519 key too, and restart its sshd{ours}",
    )


def _not_saved(error: StageError, d: Diagnosis) -> Remedy:
    path = "" if d.destination is None else d.destination.learns_into or ""
    return Remedy(
        f"the new key cannot be written to {path}, and accept-new accepts only what it can remember",
        f"let this user write {path}; or give another --known-hosts",
    )


def _known_hosts(d: Diagnosis) -> KnownHosts:
    return KnownHosts.read(() if d.destination is None else d.destination.known_hosts)


# Anywhere on the way.


def _lost(error: StageError, d: Diagnosis) -> Remedy:
    return Remedy(
        "the network, a firewall that drops idle connections, or the end of the server",
        f"run it again; if it stays so, see the log of sshd on {d.machine}",
    )


def _deadline(error: StageError, d: Diagnosis) -> Remedy:
    return Remedy(f"{d.machine} or the network is too slow for the time allowed", "give a longer --deadline")


def _short_of(what: str, limit: str) -> Callable[[StageError, Diagnosis], Remedy]:
    def explain(error: StageError, d: Diagnosis) -> Remedy:
        return Remedy(f"this machine, or this process, has too few {what} left", f"raise the limit: `{limit}`")

    return explain


_OF_CONNECTION = frozenset(
    {Reason.CONNECTION_LOST, Reason.STALLED, Reason.TOO_SLOW, Reason.DEADLINE_PASSED, Reason.REPLY_TIMEOUT}
)

_REMEDIES: dict[Reason, Callable[[StageError, Diagnosis], Remedy]] = {
    Reason.INSECURE_CONFIGURATION: _insecure,
    Reason.CONFIGURATION_UNREADABLE: _unreadable,
    Reason.UNKNOWN_KEYWORD: _unknown_keyword,
    Reason.UNSUPPORTED_KEYWORD: _unsupported_keyword,
    Reason.INVALID_CONFIGURATION: _invalid_value,
    Reason.INVALID_ARGUMENT: _invalid_value,
    Reason.NAME_NOT_RESOLVED: _name,
    Reason.RESOLVER_TIMEOUT: _resolver,
    **dict.fromkeys(
        (
            Reason.CONNECTION_REFUSED,
            Reason.CONNECT_TIMEOUT,
            Reason.CONNECT_FAILED,
            Reason.HOST_UNREACHABLE,
            Reason.FORWARDING_REFUSED,
            Reason.HOP_CANNOT_CONNECT,
        ),
        _tcp,
    ),
    Reason.BIND_FAILED: _bind,
    Reason.PROXY_COMMAND_FAILED: _proxy_command,
    **dict.fromkeys((Reason.NOT_SSH, Reason.BANNER_TIMEOUT, Reason.CLOSED_BEFORE_BANNER), _banner),
    **dict.fromkeys(
        (
            Reason.NO_COMMON_ALGORITHM,
            Reason.STRICT_KEX_MISSING,
            Reason.KEY_EXCHANGE_FAILED,
            Reason.KEY_EXCHANGE_TIMEOUT,
        ),
        _key_exchange,
    ),
    Reason.CLOSED_BEFORE_LOGIN: _ended,
    Reason.HOST_KEY_UNKNOWN: _unknown_host_key,
    **dict.fromkeys((Reason.HOST_KEY_CHANGED, Reason.HOST_KEY_MISMATCHED), _other_host_key),
    Reason.HOST_CERTIFICATE_INVALID: _certificate,
    Reason.HOST_CERTIFICATE_UNKNOWN: _unknown_certificate,
    Reason.HOST_KEY_REVOKED: _revoked,
    Reason.HOST_KEY_NOT_PINNED: _not_pinned,
    Reason.HOST_KEY_TOO_SMALL: _small_host_key,
    Reason.HOST_KEY_NOT_SAVED: _not_saved,
    **dict.fromkeys((Reason.CONNECTION_LOST, Reason.STALLED, Reason.TOO_SLOW, Reason.REPLY_TIMEOUT), _lost),
    Reason.DEADLINE_PASSED: _deadline,
    Reason.OUT_OF_DESCRIPTORS: _short_of("file descriptors", "ulimit -n"),
    Reason.OUT_OF_THREADS: _short_of("threads", "ulimit -u"),
    Reason.OUT_OF_MEMORY: _short_of("bytes of memory", "ulimit -v"),
    **LOGIN_REMEDIES,
    **FILE_REMEDIES,
}
