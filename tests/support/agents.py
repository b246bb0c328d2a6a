"""Agents in this process: whatever somebody wants them to answer, and one whose keys are in tokens of software."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from paramiko.message import Message

_FAILURE, _LIST, _LISTED, _SIGN, _SIGNED = 5, 11, 12, 13, 14


@contextlib.contextmanager
def agent_that(path: Path, answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """Listens at *path*, and does *answer* with each connection."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def run(conn: socket.socket) -> None:
            with conn, contextlib.suppress(OSError):
                answer(conn)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    conn, _ = server.accept()
                    threading.Thread(target=run, args=(conn,), daemon=True).start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield str(path)
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def packet(body: bytes) -> bytes:
    """Return *body* as a message of an agent's."""
    return len(body).to_bytes(4, "big") + body


def string(data: bytes) -> bytes:
    """Return *data* as a string of SSH's."""
    return len(data).to_bytes(4, "big") + data


class SoftwareToken:
    """A FIDO token of software: what it signs is what a real one would sign (OpenSSH's PROTOCOL.u2f).

    Attributes:
        flags: What it says of the user: 1 is presence, 4 is verified.
        signatures: How many it has made.
        blob: The public key, as SSH encodes it.
    """

    def __init__(self, kind: str, application: bytes = b"ssh:", flags: int = 1) -> None:
        self.flags, self.signatures = flags, 0
        self._application = application
        self._ed25519, self._ecdsa = ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())
        if kind == "ed25519":
            self.kind = b"sk-ssh-ed25519@openssh.com"
            fields = [self._ed25519.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)]
        else:
            self.kind = b"sk-ecdsa-sha2-nistp256@openssh.com"
            point = self._ecdsa.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
            fields = [b"nistp256", point]
        self.blob = b"".join(map(string, [self.kind, *fields, application]))

    def sign(self, data: bytes) -> bytes:
        """Return the signature of *data*, as SSH encodes it."""
        self.signatures += 1
        seen = bytes([self.flags]) + self.signatures.to_bytes(4, "big")
        signed = hashlib.sha256(self._application).digest() + seen + hashlib.sha256(data).digest()
        if b"ed25519" in self.kind:
            raw = self._ed25519.sign(signed)
        else:
            numbers = Message()
            for number in decode_dss_signature(self._ecdsa.sign(signed, ec.ECDSA(hashes.SHA256()))):
                numbers.add_mpint(number)
            raw = numbers.asbytes()
        return string(self.kind) + string(raw) + seen


@contextlib.contextmanager
def token_agent(path: Path, *tokens: SoftwareToken, also: tuple[bytes, ...] = ()) -> Iterator[str]:
    """An agent that has *tokens*, and *also* keys or certificates of theirs under other names; yields its socket."""
    blobs = [*also, *(token.blob for token in tokens)]

    def answer(conn: socket.socket) -> None:
        stream = conn.makefile("rb")
        while head := stream.read(4):
            request = Message(stream.read(int.from_bytes(head, "big")))
            what = request.get_byte()[0]
            reply = bytes([_FAILURE])
            if what == _LIST:
                listed = b"".join(string(blob) + string(b"token") for blob in blobs)
                reply = bytes([_LISTED]) + len(blobs).to_bytes(4, "big") + listed
            elif what == _SIGN:
                blob, data = request.get_binary(), request.get_binary()
                token = next((token for token in tokens if token.blob == blob), None)
                if token is not None:
                    reply = bytes([_SIGNED]) + string(token.sign(data))
            conn.sendall(packet(reply))

    with agent_that(path, answer) as place:
        yield place
