"""Verification of signatures: only by the key's own algorithms, over all bytes, and never with SHA-1."""

from __future__ import annotations

from pathlib import Path

import paramiko
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from peerstage.ssh.data_types import DataReader, pack_string
from peerstage.ssh.keys.public_keys import PublicKey, rsa_bits
from support.keys import make_key, read_blob

ALGORITHMS = {"ed25519": ["ssh-ed25519"], "ecdsa": ["ecdsa-sha2-nistp256"], "rsa": ["rsa-sha2-256", "rsa-sha2-512"]}
SIGNATURES = pytest.mark.parametrize(
    ("key_type", "algorithm"), [(key_type, name) for key_type, names in ALGORITHMS.items() for name in names]
)


def sign(path: Path, algorithm: str) -> tuple[bytes, bytes]:
    """Return paramiko's signature of ``data`` by the key *path*: the algorithm, and the raw signature."""
    key = paramiko.PKey.from_path(path)
    algorithm_name, raw = DataReader(key.sign_ssh_data(b"data", algorithm).asbytes())
    assert algorithm_name == algorithm.encode()
    return algorithm_name, raw


@SIGNATURES
def test_signature_is_verified_over_all_its_bytes(tmp_path: Path, key_type: str, algorithm: str) -> None:
    path = make_key(tmp_path / "key", key_type=key_type)
    key = PublicKey(read_blob(Path(f"{path}.pub")))
    name, raw = sign(path, algorithm)
    assert key.verify(b"data", pack_string(name) + pack_string(raw))
    assert not key.verify(b"other", pack_string(name) + pack_string(raw))
    assert not key.verify(b"data", pack_string(name) + pack_string(raw) + b"x")
    assert not key.verify(b"data", pack_string(name) + pack_string(raw + pack_string(b"")))
    assert not key.verify(b"data", pack_string(name) + pack_string(raw)[:-1])


@SIGNATURES
def test_signature_by_another_algorithm_is_wrong(tmp_path: Path, key_type: str, algorithm: str) -> None:
    path = make_key(tmp_path / "key", key_type=key_type)
    key = PublicKey(read_blob(Path(f"{path}.pub")))
    _, raw = sign(path, algorithm)
    others = {name for names in ALGORITHMS.values() for name in names} - {algorithm}
    for other in (*others, "ssh-rsa", "rsa-sha2-1024", "", "sk-ssh-ed25519@openssh.com"):
        assert not key.verify(b"data", pack_string(other.encode()) + pack_string(raw))


def test_signature_with_sha_1_is_wrong(tmp_path: Path) -> None:
    path = make_key(tmp_path / "key", key_type="rsa")
    private_key = serialization.load_ssh_private_key(path.read_bytes(), None)
    assert isinstance(private_key, rsa.RSAPrivateKey)
    raw = private_key.sign(b"data", padding.PKCS1v15(), hashes.SHA1())
    assert not PublicKey(read_blob(Path(f"{path}.pub"))).verify(b"data", pack_string(b"ssh-rsa") + pack_string(raw))


def test_rsa_signature_without_its_leading_zeros_is_verified(tmp_path: Path) -> None:
    path = make_key(tmp_path / "key", key_type="rsa", bits=2048)
    pkey, key = paramiko.PKey.from_path(path), PublicKey(read_blob(Path(f"{path}.pub")))
    for number in range(100_000):
        data = b"%d" % number
        name, raw = DataReader(pkey.sign_ssh_data(data, "rsa-sha2-256").asbytes())
        if raw.startswith(b"\0"):
            break
    assert key.verify(data, pack_string(name) + pack_string(raw.lstrip(b"\0")))


def test_rsa_bits_are_those_of_a_valid_modulus(tmp_path: Path) -> None:
    assert rsa_bits(read_blob(Path(f"{make_key(tmp_path / 'rsa', key_type='rsa', bits=2048)}.pub"))) == 2048
    assert rsa_bits(read_blob(Path(f"{make_key(tmp_path / 'ed25519')}.pub"))) is None
    prefix = pack_string(b"ssh-rsa") + pack_string(b"\1\0\1")
    negative, trailing = pack_string(b"\xff" * 256), pack_string(b"\0" + b"\xff" * 256) + b"x"
    for invalid in (negative, trailing, pack_string(b""), b""):
        with pytest.raises(ValueError, match=r"."):
            rsa_bits(prefix + invalid)


@pytest.mark.parametrize("key_type", ALGORITHMS)
def test_truncated_or_extended_key_is_invalid(tmp_path: Path, key_type: str) -> None:
    path = make_key(tmp_path / "key", key_type=key_type)
    blob = read_blob(Path(f"{path}.pub"))
    for invalid in (b"", blob[:3], blob[:-1], blob + b"x", blob + pack_string(b"x")):
        with pytest.raises(ValueError, match=r"."):
            PublicKey(invalid)
