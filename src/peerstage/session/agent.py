"""An ssh agent (draft-ietf-sshm-ssh-agent): its keys and their signatures, waited for, but not for ever."""

from __future__ import annotations

import socket
import struct
import time

from peerstage.reasons import Reason

#: Seconds that an agent has to answer: it is passed over then. A signature may take a card its time.
_ANSWER = 2.0
_SIGNATURE = 10.0
_MOST_BYTES = 256 * 1024
_MOST_KEYS = 1024

_REQUEST_IDENTITIES, _IDENTITIES_ANSWER = 11, 12
_SIGN_REQUEST, _SIGN_RESPONSE = 13, 14
_FLAGS = {"rsa-sha2-256": 2, "rsa-sha2-512": 4}


class UnusableKey(Exception):
    """A private key, or whoever holds it, cannot be used.

    Args:
        why: Why not, in words.
        reason: Why not.
    """

    def __init__(self, why: str, reason: Reason) -> None:
        super().__init__(why)
        self.reason = reason


class Agent:
    """A connection to the agent that listens at *path*.

    Raises:
        UnusableKey: Nobody answers there.
    """

    def __init__(self, path: str) -> None:
        try:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as exc:
            raise _unusable(exc, _ANSWER) from exc
        try:
            self._sock.settimeout(_ANSWER)
            self._sock.connect(path)
        except OSError as exc:
            self._sock.close()
            raise _unusable(exc, _ANSWER) from exc

    def keys(self) -> list[tuple[bytes, str]]:
        """Return each key or certificate that it has, as SSH encodes it, and the comment to it.

        Raises:
            UnusableKey: It does not tell.
        """
        answer = self._ask(struct.pack(">B", _REQUEST_IDENTITIES), _IDENTITIES_ANSWER, _ANSWER)
        try:
            count, at, found = struct.unpack_from(">I", answer)[0], 4, []
            for _ in range(min(count, _MOST_KEYS)):
                blob, at = _string(answer, at)
                comment, at = _string(answer, at)
                found.append((blob, comment.decode("utf-8", "replace")))
        except (struct.error, ValueError):
            raise UnusableKey("its list of keys can not be read", Reason.AGENT_REFUSED) from None
        return found

    def sign(self, blob: bytes, algorithm: str, data: bytes) -> bytes:
        """Return the signature of *data* by the key *blob*, as SSH encodes it.

        Raises:
            UnusableKey: It does not sign.
        """
        fields = b"".join(struct.pack(">I", len(one)) + one for one in (blob, data))
        request = struct.pack(">B", _SIGN_REQUEST) + fields + struct.pack(">I", _FLAGS.get(algorithm, 0))
        answer = self._ask(request, _SIGN_RESPONSE, _SIGNATURE)
        try:
            return _string(answer, 0)[0]
        except (struct.error, ValueError):
            raise UnusableKey("its signature can not be read", Reason.AGENT_REFUSED) from None

    def close(self) -> None:
        """Close the connection. Closing again is allowed."""
        self._sock.close()

    def _ask(self, request: bytes, wanted: int, seconds: float) -> bytes:
        if self._sock.fileno() < 0:  # a late answer would be taken for that to the next request
            raise UnusableKey("the agent has stopped answering", Reason.AGENT_SILENT)
        until = time.monotonic() + seconds
        try:
            self._sock.settimeout(seconds)
            self._sock.sendall(struct.pack(">I", len(request)) + request)
            (length,) = struct.unpack(">I", self._read(4, until))
            if not 1 <= length <= _MOST_BYTES:
                raise UnusableKey("it is no ssh agent", Reason.AGENT_REFUSED)
            answer = self._read(length, until)
        except OSError as exc:
            self.close()
            raise _unusable(exc, seconds) from exc
        if answer[0] != wanted:
            raise UnusableKey("the agent refuses", Reason.AGENT_REFUSED)
        return answer[1:]

    def _read(self, count: int, until: float) -> bytes:
        data = b""
        while len(data) < count:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._sock.settimeout(left)
            piece = self._sock.recv(count - len(data))
            if not piece:
                raise ConnectionResetError("it hangs up")
            data += piece
        return data


def _string(data: bytes, at: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from(">I", data, at)
    end = at + 4 + length
    if end > len(data):
        raise ValueError("cut off")
    return data[at + 4 : end], end


def _unusable(exc: OSError, seconds: float) -> UnusableKey:
    if isinstance(exc, TimeoutError):
        return UnusableKey(f"no answer within {seconds:g} s", Reason.AGENT_SILENT)
    return UnusableKey(exc.strerror or str(exc), Reason.AGENT_UNAVAILABLE)
