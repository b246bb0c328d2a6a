"""The likely cause of a failure and what to do about it, from its reason, its attributes and the configuration."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable

from peerstage.cli.diagnosis import Diagnosis
from peerstage.cli.file_remedies import FILE_REMEDIES, WRITE_DENIED, WRITE_REMEDIES
from peerstage.cli.login_remedies import LOGIN_REMEDIES
from peerstage.cli.option_names import name_limit
from peerstage.errors import ConnectError, StageError
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.ssh.auth.login_remedies import Remedy
from peerstage.ssh.hostkeys.known_hosts import KnownHosts
from peerstage.ssh.options import as_tuple, expand_home

#: The keyword for each kind of algorithm, and a value that current servers and clients have in common.
_ALGORITHM_KEYWORDS = {
    "kex": ("KexAlgorithms", "+curve25519-sha256"),
    "host key": ("HostKeyAlgorithms", "+ssh-ed25519,rsa-sha2-512"),
    "cipher": ("Ciphers", "+aes128-gcm@openssh.com"),
    "mac": ("MACs", "+hmac-sha2-256"),
}


def find_remedy(error: StageError, diagnosis: Diagnosis) -> Remedy:
    """Return the remedy for *error* at the step of *diagnosis*, in printable characters."""
    cause, action = _explain_hop(error, diagnosis) if error.hop else _explain(error, diagnosis)
    return Remedy(escape(cause), escape(action))


def _explain(error: StageError, d: Diagnosis) -> Remedy:
    if d.step == "write" and error.reason not in _CONNECTION_REMEDIES:
        return WRITE_REMEDIES.get(error.reason, WRITE_DENIED).fill(d.terms(error))
    remedy = _REMEDIES.get(error.reason) or Remedy(
        error.reason.meaning.rstrip("."), "run it again with --verbose; {log}"
    )
    return remedy.fill(d.terms(error)) if isinstance(remedy, Remedy) else remedy(error, d)


def _explain_hop(error: StageError, d: Diagnosis) -> Remedy:
    """Return the remedy for an error of a jump host, from that host's own settings."""
    hop = d.for_hop(error.hop)
    if hop is None:
        return Remedy(f"the jump host {error.hop} failed", f"run `peerstage doctor {error.hop}`")
    remedy = _explain(error, hop)
    return Remedy(f"jump host {error.hop}: {remedy.cause}", f"{remedy.action}; or {hop.another_hop}")


# Configuration.


def _explain_insecure_file(error: StageError, d: Diagnosis) -> Remedy:
    path = d.location(error.location)
    command = f"chmod go-w {shlex.quote(path)}"
    if os.path.exists(path) and os.stat(path).st_uid not in (0, os.geteuid()):
        command = f"chown {os.geteuid()} {shlex.quote(path)} && {command}"
    return Remedy("other users can write the file, and so decide where ssh connects to", f"run `{command}`")


def _explain_unreadable_file(error: StageError, d: Diagnosis) -> Remedy:
    path = d.location(error.location)
    cause = f"{path} {'cannot be read' if os.path.exists(path) else 'does not exist'}"
    if path in map(expand_home, as_tuple(d.options.config)):  # not a file that one of these includes
        return Remedy(cause, f"give another --config than {path}")
    return Remedy(cause, f"run `chmod u+r {shlex.quote(path)}`")


# Name, address, port.


def _explain_unresolved_name(error: StageError, d: Diagnosis) -> Remedy:
    configured = d.setting("HostName")
    if configured:
        return Remedy("DNS and /etc/hosts do not know the configured name", f"correct {configured}")
    correct = "correct the name" if d.peer is None else d.another_hop
    return Remedy(
        "DNS and /etc/hosts do not know the name, and no `HostName` is configured for it",
        f"{correct}, or {d.correction('HostName', 'ADDRESS')}",
    )


# The server before the host key.


def _explain_banner(error: StageError, d: Diagnosis) -> Remedy:
    has_proxy = d.destination is not None and d.destination.proxy_command is not None
    return (_PROXY_COMMAND if has_proxy else _BANNERS[error.reason]).fill(d.terms(error))


def _explain_no_common_algorithm(error: StageError, d: Diagnosis) -> Remedy:
    kind = error.algorithm_kind if isinstance(error, ConnectError) else ""
    if kind not in _ALGORITHM_KEYWORDS:
        return _COMPRESSION.fill(d.terms(error))
    keyword, value = _ALGORITHM_KEYWORDS[kind]
    return Remedy(
        "the server offers only algorithms that are too old, or that the configuration here excludes",
        f"{d.sshd_setting(f'{keyword} {value}')}{_or_correct(d, keyword)}",
    )


# Host keys. The host controls part of an error message, so never build a command from one (command injection).


def _explain_unknown_host_key(error: StageError, d: Diagnosis) -> Remedy:
    if d.trust:
        return Remedy(f"known_hosts has no key of {d.machine} yet", f"compare the fingerprint, and run `{d.trust}`")
    named = d.setting("UserKnownHostsFile")
    if d.options.known_hosts is not None:
        named = f"--known-hosts {' '.join(map(str, as_tuple(d.options.known_hosts)))}"
    return Remedy(
        "no known_hosts file is configured to which the key could be added",
        f"remove {named}, then compare the fingerprint, and run `{d.trust_in_default_file}`",
    )


def _explain_other_host_key(error: StageError, d: Diagnosis) -> Remedy:
    removal = "" if d.destination is None else _known_hosts(d).removal_command(*d.destination.host_key_name)
    steps = ", then run ".join(f"`{command}`" for command in (removal, d.trust) if command)
    return Remedy(
        f"{d.machine} has a new key, or this is a man-in-the-middle attack",
        f"compare the fingerprint on {d.machine} itself, and only then "
        + (f"run {steps}" if steps else f"correct {d.location(error.location)}"),
    )


def _explain_certificate(error: StageError, d: Diagnosis) -> Remedy:
    if d.destination is None:
        return _explain_other_host_key(error, d)
    name = d.destination.host_key_name
    line = next(iter(_known_hosts(d).authorities(*name).values()), "known_hosts")
    host = shlex.quote(name[0])
    return Remedy(
        f"{d.machine} presents no valid certificate of the authority in {line} for {name[0]}",
        f"sign its key with `ssh-keygen -s AUTHORITY -h -I {host} -n {host} HOSTKEY.pub`, and "
        + d.sshd_setting("HostCertificate FILE"),
    )


def _explain_unknown_certificate(error: StageError, d: Diagnosis) -> Remedy:
    authorities = {} if d.destination is None else _known_hosts(d).authorities(*d.destination.host_key_name)
    return _explain_certificate(error, d) if authorities else _explain_unknown_host_key(error, d)


def _or_correct(d: Diagnosis, keyword: str) -> str:
    configured = d.setting(keyword)
    return f"; or correct {configured}" if configured else ""


def _known_hosts(d: Diagnosis) -> KnownHosts:
    return KnownHosts.read(() if d.destination is None else d.destination.known_hosts)


_PROXY_COMMAND = Remedy("the ProxyCommand does not lead to an SSH server", "{proxy_command}")
_BANNERS = {
    Reason.NOT_SSH: Remedy("the server on that port is not an SSH server", "{port}"),
    Reason.BANNER_TIMEOUT: Remedy(
        "something accepts connections there but sends nothing: not an SSH server, or one that hangs", "{port}"
    ),
    Reason.CLOSED_BEFORE_BANNER: Remedy(
        "the server refuses this address, or has too many connections",
        "check `MaxStartups` and `PerSourcePenalties` in {sshd_config}, and its /etc/hosts.deny; or {port}",
    ),
}
_COMPRESSION = Remedy(
    "the server requires compression, which peerstage does not use",
    "let the SSH server of {machine} accept connections without compression",
)
_STRICT_KEX = Remedy(
    "the server is vulnerable to CVE-2023-48795",
    "update it; or set `Ciphers +aes128-gcm@openssh.com` in {sshd_config}, and restart its sshd",
)
_COMPARE_WITH_SSH = "compare with `ssh -v {host}`; {log}"
_KEY_EXCHANGE_FAILED = Remedy("the server ended the key exchange, or sent something invalid in it", _COMPARE_WITH_SSH)
_KEY_EXCHANGE_TIMEOUT = Remedy("large packets do not get through (MTU), or the server hangs", _COMPARE_WITH_SSH)
_INVALID_VALUE = Remedy("the value is invalid", "correct {location}")
_REFUSED = Remedy("nothing listens on that port there{or_gateway}", "start sshd on {machine}; or {port}")
_NO_ANSWER = Remedy(
    "{machine} is down, its address is wrong, or a firewall drops packets to it",
    "let the firewall pass the port; or if sshd listens on another one, {port}",
)
_LOST = Remedy(
    "the network failed, a firewall drops idle connections, or the server ended the connection",
    "run it again; if it fails again, {log}",
)
_PAST_DEADLINE = Remedy("{machine} or the network is too slow for the time allowed", "give a longer --deadline")
_TOO_SLOW = Remedy(
    f"{{machine}} or the network is slower than {name_limit('min_rate')} requires",
    f"check the network; or give a lower {name_limit('min_rate')}=NUMBER",
)
_CONNECTION_REMEDIES = {
    **dict.fromkeys((Reason.CONNECTION_LOST, Reason.STALLED, Reason.REPLY_TIMEOUT), _LOST),
    Reason.DEADLINE_PASSED: _PAST_DEADLINE,
    Reason.TOO_SLOW: _TOO_SLOW,
}

#: Remedies, or functions that return them, by reason.
_REMEDIES: dict[Reason, Remedy | Callable[[StageError, Diagnosis], Remedy]] = {
    Reason.INSECURE_CONFIGURATION: _explain_insecure_file,
    Reason.CONFIGURATION_UNREADABLE: _explain_unreadable_file,
    Reason.UNKNOWN_KEYWORD: Remedy(
        "the keyword is misspelled, or belongs to another version of ssh",
        "correct {location}; or name the keyword with `IgnoreUnknown` in a line above",
    ),
    Reason.UNSUPPORTED_KEYWORD: Remedy(
        "the line may change which host is reached or trusted, and is not supported",
        "remove {location}; or give a file without it with --config",
    ),
    Reason.INVALID_CONFIGURATION: _INVALID_VALUE,
    Reason.INVALID_ARGUMENT: _INVALID_VALUE,
    Reason.NAME_NOT_RESOLVED: _explain_unresolved_name,
    Reason.RESOLVER_TIMEOUT: Remedy("the name servers do not answer", "check those in /etc/resolv.conf; or {address}"),
    Reason.CONNECTION_REFUSED: _REFUSED,
    Reason.HOP_CANNOT_CONNECT: _REFUSED,
    Reason.CONNECT_TIMEOUT: _NO_ANSWER,
    Reason.CONNECT_FAILED: _NO_ANSWER,
    Reason.HOST_UNREACHABLE: Remedy("no route leads to that address", "check the network; or {address}"),
    Reason.FORWARDING_REFUSED: Remedy(
        "{gateway} forwards nothing for this login",
        "set `AllowTcpForwarding yes` in /etc/ssh/sshd_config on {gateway}, and restart its sshd",
    ),
    Reason.BIND_FAILED: Remedy("this machine does not have that address", "{bind_address}"),
    Reason.PROXY_COMMAND_FAILED: _PROXY_COMMAND,
    **dict.fromkeys(_BANNERS, _explain_banner),
    Reason.NO_COMMON_ALGORITHM: _explain_no_common_algorithm,
    Reason.STRICT_KEX_MISSING: _STRICT_KEX,
    Reason.KEY_EXCHANGE_FAILED: _KEY_EXCHANGE_FAILED,
    Reason.KEY_EXCHANGE_TIMEOUT: _KEY_EXCHANGE_TIMEOUT,
    Reason.CLOSED_BEFORE_LOGIN: Remedy(
        "the server closed the connection: it has too many, refuses this address or user, or failed",
        "{log}: `journalctl -u ssh`",
    ),
    Reason.HOST_KEY_UNKNOWN: _explain_unknown_host_key,
    Reason.HOST_KEY_CHANGED: _explain_other_host_key,
    Reason.HOST_KEY_MISMATCHED: _explain_other_host_key,
    Reason.HOST_CERTIFICATE_INVALID: _explain_certificate,
    Reason.HOST_CERTIFICATE_UNKNOWN: _explain_unknown_certificate,
    Reason.HOST_KEY_REVOKED: Remedy(
        "the key is marked as revoked in {location}", "give {machine} a new host key{then_trust}"
    ),
    Reason.HOST_KEY_NOT_PINNED: lambda error, d: Remedy(
        f"{d.machine} has another key than --host-key names, or this is a man-in-the-middle attack",
        f"give another --host-key than {d.options.host_key}, if `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on "
        f"{d.machine} itself shows another",
    ),
    Reason.HOST_KEY_TOO_SMALL: lambda error, d: Remedy(
        f"the RSA key of {d.machine} is too small (RequiredRSASize)",
        f"run `ssh-keygen -A` on {d.machine}, which makes an Ed25519 key too, and restart its sshd"
        + _or_correct(d, "RequiredRSASize"),
    ),
    Reason.HOST_KEY_NOT_SAVED: Remedy(
        "the new key cannot be written to {new_keys_file}, and accept-new accepts only a key that it can add",
        "let this user write {new_keys_file}; or give another --known-hosts",
    ),
    Reason.OUT_OF_DESCRIPTORS: Remedy(
        "this machine or process has no file descriptors left",
        "raise the limit: `ulimit -n`, or `sysctl fs.file-max` for the machine",
    ),
    Reason.OUT_OF_THREADS: Remedy(
        "this machine or user has no threads or processes left", "raise the limit: `ulimit -u`"
    ),
    Reason.OUT_OF_MEMORY: Remedy(
        "this machine or process has no memory left", "free memory, or raise the limit if one is set: `ulimit -v`"
    ),
    **_CONNECTION_REMEDIES,
    **LOGIN_REMEDIES,
    **FILE_REMEDIES,
}
