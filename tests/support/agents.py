"""SSH agents in this process: one with arbitrary replies, and one with FIDO keys in software."""

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
def serve_agent(path: Path, answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """Listen at *path* and call *answer* with each connection; yield the path."""
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


def agent_packet(body: bytes) -> bytes:
    """Return *body* as an agent message, with its length in front."""
    return len(body).to_bytes(4, "big") + body


def pack_string(data: bytes) -> bytes:
    """Return *data* as an SSH string (RFC 4251, 5)."""
    return len(data).to_bytes(4, "big") + data


class SoftwareToken:
    """A FIDO token in software, which signs what a real one would sign (OpenSSH's PROTOCOL.u2f).

    Attributes:
        flags: User presence is 1, user verification 4.
        signatures: The signature counter.
        blob: The public key in SSH's wire format.
    """

    def __init__(self, key_type: str, application: bytes = b"ssh:", flags: int = 1) -> None:
        self.flags, self.signatures = flags, 0
        self._application = application
        self._ed25519, self._ecdsa = ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())
        if key_type == "ed25519":
            self.key_type = b"sk-ssh-ed25519@openssh.com"
            fields = [self._ed25519.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)]
        else:
            self.key_type = b"sk-ecdsa-sha2-nistp256@openssh.com"
            point = self._ecdsa.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
            fields = [b"nistp256", point]
        self.blob = b"".join(map(pack_string, [self.key_type, *fields, application]))

    def sign(self, data: bytes) -> bytes:
        """Return the signature of *data* in SSH's wire format."""
        self.signatures += 1
        flags_and_counter = bytes([self.flags]) + self.signatures.to_bytes(4, "big")
        signed = hashlib.sha256(self._application).digest() + flags_and_counter + hashlib.sha256(data).digest()
        if b"ed25519" in self.key_type:
            raw = self._ed25519.sign(signed)
        else:
            numbers = Message()
            for number in decode_dss_signature(self._ecdsa.sign(signed, ec.ECDSA(hashes.SHA256()))):
                numbers.add_mpint(number)
            raw = numbers.asbytes()
        return pack_string(self.key_type) + pack_string(raw) + flags_and_counter


@contextlib.contextmanager
def serve_token_agent(path: Path, *tokens: SoftwareToken, also: tuple[bytes, ...] = ()) -> Iterator[str]:
    """Serve an agent with *tokens*, which also lists the keys or certificates *also*; yield its socket."""
    blobs = [*also, *(token.blob for token in tokens)]

    def answer(conn: socket.socket) -> None:
        stream = conn.makefile("rb")
        while head := stream.read(4):
            request = Message(stream.read(int.from_bytes(head, "big")))
            request_type = request.get_byte()[0]
            reply = bytes([_FAILURE])
            if request_type == _LIST:
                listed = b"".join(pack_string(blob) + pack_string(b"token") for blob in blobs)
                reply = bytes([_LISTED]) + len(blobs).to_bytes(4, "big") + listed
            elif request_type == _SIGN:
                blob, data = request.get_binary(), request.get_binary()
                token = next((token for token in tokens if token.blob == blob), None)
                if token is not None:
                    reply = bytes([_SIGNED]) + pack_string(token.sign(data))
            conn.sendall(agent_packet(reply))

    with serve_agent(path, answer) as socket_path:
        yield socket_path
