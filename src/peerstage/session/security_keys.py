"""FIDO security keys (OpenSSH's PROTOCOL.u2f): verifies what a token has signed. The agent asks the token to sign."""

from __future__ import annotations

from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from paramiko.message import Message

from peerstage.session.fields import Fields

ED25519, ECDSA = "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"
_FLAGS_AND_COUNTER = 5


class SecurityKey:
    """A public key whose private one is in a FIDO token.

    Args:
        blob: The key, as SSH encodes it.

    Raises:
        ValueError: If it is no such key.
    """

    def __init__(self, blob: bytes) -> None:
        kind, *fields = Fields(blob)
        self._kind = kind.decode("ascii")
        if self._kind == ED25519:
            point, self._application = fields
            self._ed25519 = ed25519.Ed25519PublicKey.from_public_bytes(point)
        elif self._kind == ECDSA:
            curve, point, self._application = fields
            if curve != b"nistp256":
                raise ValueError("the curve is not nistp256")
            self._ecdsa = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        else:
            raise ValueError("not a key of a FIDO token")

    def verify_ssh_sig(self, data: bytes, message: Message) -> bool:
        """Return whether the signature in *message* is this key's of *data* (as that method of paramiko's keys).

        The token signs a hash of the application, its flags and counter, and a hash of the data. As for ssh, a client
        does not ask whether somebody was present: that is up to whoever lets a user in.
        """
        try:
            return self._verify(data, Fields(message.asbytes()))
        except (InvalidSignature, ValueError):
            return False

    def _verify(self, data: bytes, fields: Fields) -> bool:
        kind, signature, flags_and_counter = fields.text(), fields.string(), fields.rest()
        if kind != self._kind or len(flags_and_counter) != _FLAGS_AND_COUNTER:
            return False
        signed = sha256(self._application).digest() + flags_and_counter + sha256(data).digest()
        if kind == ED25519:
            self._ed25519.verify(signature, signed)
        else:
            r, s = (int.from_bytes(number, "big", signed=True) for number in Fields(signature))
            self._ecdsa.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))
        return True
