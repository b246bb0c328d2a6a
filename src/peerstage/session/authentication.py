"""Logging in (RFC 4252): every usable key in turn, then the password; nothing interactive."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial

import paramiko

from peerstage.errors import ConfigurationError, LoginError, escape
from peerstage.session.config import Destination
from peerstage.session.keys import AgentKeys, UnusableKey, default_label, describe, parse_key, public_blob, read_key
from peerstage.session.options import SSHOptions

log = logging.getLogger("peerstage.session")


class Login:
    """One attempt to log in to a peer, and the tale of what was tried, for the error that it may end with.

    Args:
        transport: Connected, its host key checked.
        destination: The user, and which keys and agent to use.
        options: Key, passphrase and password where they were given.
    """

    def __init__(self, transport: paramiko.Transport, destination: Destination, options: SSHOptions) -> None:
        self._transport = transport
        self._destination = destination
        self._options = options
        self._tried: list[str] = []
        self._wanted: list[str] | None = None
        self._seen: set[bytes] = set()

    def run(self) -> None:
        """Log in.

        Raises:
            LoginError: Everything was refused; the message lists each thing that was tried and what came of it.
            ConfigurationError: The key that was handed in can not be used.
        """
        if self._with_keys() or self._with_password():
            log.info("%s: logged in as %s.", escape(self._destination.name), escape(self._destination.user))
            return
        tried = "; ".join(self._tried) or "there was nothing to try: no key, no agent, no password"
        also = f" The peer wants {', '.join(self._wanted)}." if self._wanted else ""
        raise LoginError(
            f"Login as {self._destination.user} refused: {tried}.{also} "
            "Add a public key to the peer's authorized_keys, or name the right one with SSHOptions(identity=...)."
        )

    def _with_keys(self) -> bool:
        for label, key in self._keys():
            blob = key.asbytes()
            if blob in self._seen:
                continue
            self._seen.add(blob)
            if self._wanted is not None and "publickey" not in self._wanted:
                return False
            if self._attempt(label, partial(self._transport.auth_publickey, self._destination.user, key)):
                return True
        return False

    def _with_password(self) -> bool:
        password = self._options.password
        if password is None:
            return False
        return self._attempt(
            "the password",
            partial(self._transport.auth_password, self._destination.user, password, fallback=False),
        )

    def _keys(self) -> Iterator[tuple[str, paramiko.PKey]]:
        pkey = self._options.pkey
        if pkey is not None:
            try:
                key = parse_key(pkey, self._options.passphrase) if isinstance(pkey, bytes) else pkey
            except UnusableKey as exc:
                raise ConfigurationError(f"SSHOptions(pkey=...) can not be used: {exc}.") from exc
            yield f"the key given ({describe(key)})", key
            return
        sources = (self._from_files, self._from_agent)
        for source in sources if self._destination.explicit_identities else reversed(sources):
            yield from source()

    def _from_files(self) -> Iterator[tuple[str, paramiko.PKey]]:
        for path in self._destination.identities:
            label = default_label(path)
            try:
                key = read_key(path, self._options.passphrase)
            except UnusableKey as exc:
                self._tried.append(f"{label}: {exc}")
                continue
            yield f"{label} ({describe(key)})", key

    def _from_agent(self) -> Iterator[tuple[str, paramiko.PKey]]:
        path = self._destination.agent
        if path is None:
            return
        try:
            agent = AgentKeys(path)
        except UnusableKey as exc:
            self._tried.append(f"agent at {path}: {exc}")
            return
        try:
            named = {public_blob(file) for file in self._destination.identities}
            for key in agent:
                if self._destination.identities_only and key.asbytes() not in named:
                    continue
                yield f"agent key ({describe(key)})", key
        finally:
            agent.close()

    def _attempt(self, label: str, attempt: Callable[[], list[str]]) -> bool:
        """Try one way in; a connection that ends meanwhile is the server having had enough (its MaxAuthTries)."""
        try:
            wanted = attempt()
        except paramiko.BadAuthenticationType as exc:
            self._wanted = list(exc.allowed_types)
            self._tried.append(f"{label}: this way of logging in is not offered")
            return False
        except paramiko.AuthenticationException as exc:
            if not self._transport.is_active():
                tried = "; ".join([*self._tried, f"{label}: the peer closed the connection"])
                raise LoginError(
                    f"Login as {self._destination.user} refused: {tried}. If there were many keys, the peer's "
                    "MaxAuthTries is used up: name the right one with SSHOptions(identity=...), or set IdentitiesOnly."
                ) from exc
            self._tried.append(f"{label}: refused")
            return False
        except (OSError, EOFError):
            raise
        except paramiko.SSHException as exc:
            if not self._transport.is_active():
                raise
            self._tried.append(f"{label}: {exc}")
            return False
        if wanted:
            self._wanted = list(wanted)
            self._tried.append(f"{label}: accepted, and more is wanted")
        return self._transport.is_authenticated()
