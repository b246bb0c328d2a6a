"""Client of an ssh agent (draft-ietf-sshm-ssh-agent), with time limits for listing identities and for signing."""

from __future__ import annotations

import contextlib
import socket
import time

from peerstage.reasons import Reason
from peerstage.ssh.data_types import DataReader, pack_string, pack_uint32

#: Seconds that an agent has to answer; a signature may need a smart card or a confirmation.
_REPLY_TIMEOUT = 2.0
_SIGN_TIMEOUT = 10.0
_MAX_REPLY_BYTES = 256 * 1024
_MAX_IDENTITIES = 1024

_REQUEST_IDENTITIES, _IDENTITIES_ANSWER = 11, 12
_SIGN_REQUEST, _SIGN_RESPONSE = 13, 14
_SIGN_FLAGS = {"rsa-sha2-256": 2, "rsa-sha2-512": 4}


class UnusableKey(Exception):
    """A key, certificate or agent that cannot be used.

    Args:
        problem: The reason in words, for `LoginAttempt.outcome`.
        reason: The reason.
        label: For a certificate, the holder of its private key that failed: a key file or the agent; else "".
        path: The path of that key file, or of the agent's socket; else "".
    """

    def __init__(self, problem: str, reason: Reason, *, label: str = "", path: str = "") -> None:
        super().__init__(problem)
        self.reason = reason
        self.label = label
        self.path = path


class Agent:
    """A connection to the agent that listens at the socket *path*.

    Raises:
        UnusableKey: If the connection fails.
    """

    def __init__(self, path: str) -> None:
        self._failure: Reason | None = None
        with contextlib.ExitStack() as stack:
            try:
                self._sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                self._sock.settimeout(_REPLY_TIMEOUT)
                self._sock.connect(path)
            except OSError as exc:
                raise _agent_error(exc, _REPLY_TIMEOUT) from exc
            stack.pop_all()

    def list_identities(self) -> list[tuple[bytes, str]]:
        """Return the keys and certificates that the agent holds, as SSH encodes them, each with its comment.

        Raises:
            UnusableKey: If the agent does not answer, refuses, or sends an invalid reply.
        """
        reply = self._request(bytes([_REQUEST_IDENTITIES]), _IDENTITIES_ANSWER, _REPLY_TIMEOUT)
        try:
            return [
                (reply.read_string(), reply.read_string().decode("utf-8", "replace"))
                for _ in range(min(reply.read_uint32(), _MAX_IDENTITIES))
            ]
        except ValueError:
            raise UnusableKey("the agent's list of keys is malformed", Reason.AGENT_REFUSED) from None

    def sign(self, blob: bytes, algorithm: str, data: bytes) -> bytes:
        """Return the signature of *data* by the key *blob*, as SSH encodes it; raise as `list_identities`."""
        fields = pack_string(blob) + pack_string(data) + pack_uint32(_SIGN_FLAGS.get(algorithm, 0))
        reply = self._request(bytes([_SIGN_REQUEST]) + fields, _SIGN_RESPONSE, _SIGN_TIMEOUT)
        try:
            return reply.read_string()
        except ValueError:
            raise UnusableKey("the agent's signature is malformed", Reason.AGENT_REFUSED) from None

    def close(self) -> None:
        """Close the connection. Closing again has no effect."""
        self._sock.close()

    def _request(self, request: bytes, reply_type: int, timeout: float) -> DataReader:
        """Send *request*, and return a reader of the reply after its type."""
        if self._failure is not None:
            raise UnusableKey("an earlier request to the agent failed", self._failure)
        deadline = time.monotonic() + timeout
        try:
            self._sock.settimeout(timeout)
            self._sock.sendall(pack_string(request))
            length = DataReader(self._receive(4, deadline)).read_uint32()
            if not 1 <= length <= _MAX_REPLY_BYTES:
                raise self._close_after(UnusableKey("the socket is not an ssh agent's", Reason.AGENT_REFUSED))
            reply = self._receive(length, deadline)
        except OSError as exc:
            raise self._close_after(_agent_error(exc, timeout)) from exc
        if reply[0] != reply_type:
            raise UnusableKey("the agent refuses", Reason.AGENT_REFUSED)
        return DataReader(reply[1:])

    def _close_after(self, failure: UnusableKey) -> UnusableKey:
        """Close the connection: a later request could be answered with the rest of this reply. Return *failure*."""
        self._failure = failure.reason
        self.close()
        return failure

    def _receive(self, count: int, deadline: float) -> bytes:
        data = b""
        while len(data) < count:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            self._sock.settimeout(remaining)
            chunk = self._sock.recv(count - len(data))
            if not chunk:
                raise ConnectionResetError("the agent closed the connection")
            data += chunk
        return data


def _agent_error(exc: OSError, timeout: float) -> UnusableKey:
    if isinstance(exc, TimeoutError):
        return UnusableKey(f"no answer within {timeout:g} s", Reason.AGENT_SILENT)
    return UnusableKey(exc.strerror or str(exc), Reason.AGENT_UNAVAILABLE)
