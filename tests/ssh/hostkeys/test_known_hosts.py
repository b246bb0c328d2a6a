"""known_hosts lines and the keys that they give to a host; ssh-keygen is the oracle."""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import os
import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstage.errors import ChangedHostKey, HostKeyError, MismatchedHostKey, RevokedHostKey, UnknownHostKey
from peerstage.ssh.hostkeys.known_hosts import KnownHosts
from peerstage.ssh.keys.public_keys import fingerprint
from support.examples import examples
from support.keys import run_ssh_keygen

ED25519, RSA, ECDSA = "ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256"


def make_key(seed: int, key_type: str = ED25519) -> bytes:
    """Return a public key of that type, as far as the parser of known_hosts reads it."""
    name, body = key_type.encode(), hashlib.sha256(b"%d" % seed).digest()
    return len(name).to_bytes(4, "big") + name + len(body).to_bytes(4, "big") + body


def make_line(names: str, key: bytes, marker: str = "", end: str = "\n") -> bytes:
    key_type = key[4 : 4 + key[3]].decode()
    return f"{marker} {names} {key_type} {base64.b64encode(key).decode()}{end}".lstrip().encode()


def hash_name(name: str, salt: bytes = b"0123456789abcdefghij") -> str:
    digest = hmac.digest(salt, name.encode(), "sha1")
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def verdict(known: KnownHosts, host: str, port: int, key: bytes) -> type[HostKeyError] | None:
    """Return None if the key is trusted, otherwise the type of the error."""
    try:
        known.check(host, port, key[4 : 4 + key[3]].decode(), key)
    except HostKeyError as exc:
        return type(exc)
    return None


def error_message(known: KnownHosts, host: str, port: int, key: bytes) -> str:
    """Return the error message about a key that is refused."""
    with pytest.raises(HostKeyError) as caught:
        known.check(host, port, key[4 : 4 + key[3]].decode(), key)
    assert (caught.value.peer, caught.value.path) == ("", None)
    assert caught.value.message.isprintable(), "the message is one line"
    return caught.value.message


def find_lines(file: Path, name: str) -> dict[int, str]:
    """Return the numbers of the lines that ssh-keygen finds for a name, each with its marker."""
    found = run_ssh_keygen("-F", name, "-f", file, allowed=(0, 1))
    return {int(number): marker for number, marker in re.findall(r"^# Host \S+ found: line (\d+) (\w*)", found, re.M)}


OLD, NEW, OTHER_TYPE = make_key(1), make_key(2), make_key(3, RSA)


# --- names -----------------------------------------------------------------------------------------------------------

NAMES = [
    # names in the line, host, port, whether the line matches
    ("db1.example.com", "db1.example.com", 22, True),
    ("db1.example.com", "db1", 22, False),
    ("db1.example.com", "db10example.com", 22, False),
    ("DB1.Example.COM", "db1.example.com", 22, True),
    ("db2,db1,192.0.2.7", "db1", 22, True),
    ("db2,db1,192.0.2.7", "192.0.2.7", 22, True),
    ("db2,db1,192.0.2.7", "db2,db1", 22, False),
    ("*", "db1", 22, True),
    ("*", "db1", 2222, True),
    ("*.example.com", "db1.example.com", 22, True),
    ("*.example.com", ".example.com", 22, True),
    ("*.example.com", "example.com", 22, False),
    ("db?", "db1", 22, True),
    ("db?", "db", 22, False),
    ("db?", "db10", 22, False),
    ("d**b*1*", "db1", 22, True),
    ("*a*b*c", "xxaxxabxxbxc", 22, True),
    ("*a*b*c", "xxaxxabxxbxcx", 22, False),
    ("[a-z]b1", "db1", 22, False),
    ("db[1]", "db[1]", 22, True),
    ("db.1", "db-1", 22, False),
    ("*.example.com,!db2.example.com", "db1.example.com", 22, True),
    ("*.example.com,!db2.example.com", "db2.example.com", 22, False),
    ("!db2.example.com,*.example.com", "db2.example.com", 22, False),
    ("db2.example.com,!*.example.com", "db2.example.com", 22, False),
    ("!db2", "db1", 22, False),
    ("!DB2,*", "db2", 22, False),
    ("!!db2,*", "db2", 22, True),
    ("db1,,db2", "db2", 22, True),
    ("[db1]:2222", "db1", 2222, True),
    ("[db1]:2222", "db1", 22, False),
    ("[db1]:2222", "db1", 2223, False),
    ("[db1]:22", "db1", 22, False),
    ("[*]:2222", "db1", 2222, True),
    ("[db?]:2*", "db1", 2222, True),
    ("::1", "::1", 22, True),
    ("[::1]:2222", "::1", 2222, True),
    ("2001:db8::*", "2001:db8::7", 22, True),
    (hash_name("db1"), "db1", 22, True),
    (hash_name("db1"), "db2", 22, False),
    (hash_name("[db1]:2222"), "db1", 2222, True),
    (hash_name("[db1]:2222"), "db1", 22, False),
    (hash_name("db*"), "db1", 22, False),
    (hash_name("::1"), "::1", 22, True),
    ("x" * 1022 + ",db1", "db1", 22, True),
    ("x" * 1023 + ",db1", "db1", 22, False),
    ("db1," + "y," * 2000 + "x", "db1", 22, True),
]
NAME_IDS = [f"{names[:40]}-{host}-{port}" for names, host, port, _ in NAMES]


@pytest.mark.parametrize(("names", "host", "port", "is_known"), NAMES, ids=NAME_IDS)
def test_line_applies_to_the_hosts_that_its_names_match(names: str, host: str, port: int, is_known: bool) -> None:
    known = KnownHosts.read([make_line(names, OLD)])
    assert verdict(known, host, port, OLD) is (None if is_known else UnknownHostKey)
    assert known.key_types(host, port) == ((ED25519,) if is_known else ())


@pytest.mark.usefixtures("openssh")
@pytest.mark.parametrize(("names", "host", "port", "is_known"), NAMES, ids=NAME_IDS)
def test_ssh_keygen_matches_the_same_names(names: str, host: str, port: int, is_known: bool, tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_bytes(make_line(names, OLD))
    assert bool(find_lines(file, host if port == 22 else f"[{host}]:{port}")) is is_known


@pytest.mark.parametrize("names", ["db1.example.com", hash_name("db1.example.com")], ids=["plain", "hashed"])
def test_host_name_is_case_insensitive(names: str) -> None:
    assert verdict(KnownHosts.read([make_line(names, OLD)]), "DB1.Example.com", 22, OLD) is None


@pytest.mark.parametrize("names", ["db1,db2", "db?,!db2", hash_name("db1")])
def test_empty_host_name_matches_nothing(names: str) -> None:
    assert verdict(KnownHosts.read([make_line(names, OLD)]), "", 22, OLD) is UnknownHostKey


@pytest.mark.usefixtures("openssh")
def test_names_hashed_by_ssh_keygen_match(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_bytes(make_line("Db1,[db2]:2222,::1", OLD))
    run_ssh_keygen("-q", "-H", "-f", file)
    assert b"db" not in file.read_bytes().lower().replace(b"=", b" ").split()
    known = KnownHosts.read([file])
    assert [verdict(known, *where, OLD) for where in [("db1", 22), ("db2", 2222), ("::1", 22)]] == [None] * 3
    assert verdict(known, "db2", 22, OLD) is UnknownHostKey


def test_pattern_of_many_stars_is_matched_in_bounded_time() -> None:
    known = KnownHosts.read([make_line("*" + "a*" * 500 + "b", OLD)])
    began = time.monotonic()
    assert verdict(known, "a" * 2000, 22, OLD) is UnknownHostKey
    assert time.monotonic() - began < 5


# --- keys -------------------------------------------------------------------------------------------------------------


def test_each_of_several_keys_of_a_type_is_trusted() -> None:
    known = KnownHosts.read([make_line("db1", OLD), make_line("db*", NEW)])
    assert (verdict(known, "db1", 22, OLD), verdict(known, "db1", 22, NEW)) == (None, None)


def test_another_key_of_a_known_type_is_a_changed_key() -> None:
    assert verdict(KnownHosts.read([make_line("db1", OLD)]), "db1", 22, NEW) is ChangedHostKey


def test_key_of_another_type_is_mismatched_and_the_error_names_the_known_types() -> None:
    known = KnownHosts.read([make_line("db1", OTHER_TYPE) + make_line("db1", make_key(4, ECDSA))])
    assert verdict(known, "db1", 22, NEW) is MismatchedHostKey
    assert f"but only keys of other types are known for db1: {RSA}, {ECDSA} in known_hosts data:1" in error_message(
        known, "db1", 22, NEW
    )


def test_known_key_with_a_wrong_type_is_not_trusted() -> None:
    with pytest.raises(MismatchedHostKey):
        KnownHosts.read([make_line("db1", OLD)]).check("db1", 22, RSA, OLD)


def test_key_types_are_in_file_order_without_repeats() -> None:
    lines = [make_line("db1", key) for key in (OTHER_TYPE, OLD, make_key(5, RSA), NEW)]
    assert KnownHosts.read(lines).key_types("db1", 22) == (RSA, ED25519)


def test_hosts_can_be_checked_alternately() -> None:
    known = KnownHosts.read([make_line("db1", OLD) + make_line("db2", NEW)])
    assert [verdict(known, host, 22, OLD) for host in ("db1", "db2", "db1")] == [None, ChangedHostKey, None]


# --- ports -----------------------------------------------------------------------------------------------------------


def test_key_of_the_bare_name_is_accepted_on_a_port_without_a_known_key() -> None:
    known = KnownHosts.read([make_line("db1", OLD)])
    assert verdict(known, "db1", 2222, OLD) is None
    assert known.key_types("db1", 2222) == (ED25519,)


def test_different_key_of_the_bare_name_is_no_changed_key_of_another_port() -> None:
    assert verdict(KnownHosts.read([make_line("db1", OLD)]), "db1", 2222, NEW) is UnknownHostKey


@pytest.mark.parametrize(
    ("known_at_port", "expected"),
    [(NEW, ChangedHostKey), (OTHER_TYPE, MismatchedHostKey)],
    ids=["same type", "other type"],
)
def test_bare_name_is_ignored_on_a_port_with_a_known_key(known_at_port: bytes, expected: type[HostKeyError]) -> None:
    known = KnownHosts.read([make_line("db1", OLD), make_line("[db1]:2222", known_at_port)])
    assert verdict(known, "db1", 2222, OLD) is expected


# --- markers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", [22, 2222])
@pytest.mark.parametrize("names", ["db1", "*", "db?,!db2", "[db1]:2222,db1", hash_name("db1")])
def test_revoked_key_is_refused_whatever_other_lines_say(names: str, port: int) -> None:
    trusting, revoking = make_line("db1,[db1]:2222,*", OLD), make_line(names, OLD, "@revoked")
    for lines in (trusting + revoking, revoking + trusting):
        known = KnownHosts.read([lines])
        assert verdict(known, "db1", port, OLD) is RevokedHostKey
        assert known.key_types("db1", port) == ()


def test_key_revoked_for_another_host_stays_trusted() -> None:
    known = KnownHosts.read([make_line("db1", OLD), make_line("db2", OLD, "@revoked")])
    assert verdict(known, "db1", 22, OLD) is None


def test_new_key_stays_trusted_when_the_old_one_is_revoked() -> None:
    known = KnownHosts.read([make_line("db1", OLD), make_line("db1", NEW), make_line("*", OLD, "@revoked")])
    assert verdict(known, "db1", 22, NEW) is None
    assert known.key_types("db1", 22) == (ED25519,)


def test_revocation_in_one_file_overrides_trust_in_another(tmp_path: Path) -> None:
    user, system = tmp_path / "user", tmp_path / "system"
    user.write_bytes(make_line("db1", OLD))
    system.write_bytes(make_line("*", OLD, "@revoked"))
    assert verdict(KnownHosts.read([user, system]), "db1", 22, OLD) is RevokedHostKey


def test_white_space_of_any_kind_may_follow_a_marker() -> None:
    revoking = make_line("db1", OLD, "@revoked").replace(b"@revoked ", b"@revoked\t \t")
    assert verdict(KnownHosts.read([make_line("db1", OLD), revoking]), "db1", 22, OLD) is RevokedHostKey


def test_key_of_an_authority_is_not_a_host_key() -> None:
    known = KnownHosts.read([make_line("*", OLD, "@cert-authority")])
    assert known.key_types("db1", 22) == ()
    assert verdict(known, "db1", 22, NEW) is UnknownHostKey
    assert "@cert-authority in known_hosts data:1 applies to certificates only" in error_message(known, "db1", 22, OLD)


def test_key_of_an_authority_is_not_a_host_key_beside_a_host_key() -> None:
    known = KnownHosts.read([make_line("db1", OTHER_TYPE), make_line("db1", OLD, "@cert-authority")])
    assert known.key_types("db1", 22) == (RSA,)
    assert verdict(known, "db1", 22, OLD) is MismatchedHostKey


def test_authority_of_a_port_does_not_hide_the_key_of_the_bare_name() -> None:
    known = KnownHosts.read([make_line("[db1]:2222", NEW, "@cert-authority"), make_line("db1", OLD)])
    assert verdict(known, "db1", 2222, OLD) is None


# --- lines -----------------------------------------------------------------------------------------------------------

GOOD = make_line("db1", OLD, end="")
TOLERATED = {
    "no newline at the end": GOOD,
    "carriage return": GOOD + b"\r\n",
    "comment after the key": GOOD + b" root@db1 # 2026\r\n",
    "leading white space": b" \t" + GOOD + b"\n",
    "tabs": GOOD.replace(b" ", b"\t \t") + b"\n",
    "bytes that are not UTF-8": GOOD + b" \xff\xfe\x80\n",
    "a NUL after the key": GOOD + b"\0\xff\n",
    "a very long comment": GOOD + b" " + b"x" * 3_000_000 + b"\n",
    "comments and blank lines around": b"# db1\n\n \t\r\n\r\n\t#\n" + GOOD + b"\n\n#",
}


@pytest.mark.parametrize("data", TOLERATED.values(), ids=TOLERATED)
def test_line_is_valid_with(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    assert verdict(KnownHosts.read([data]), "db1", 22, OLD) is None
    assert caplog.messages == []


KEY = base64.b64encode(OLD)
INVALID = {
    "one field": b"db1",
    "two fields": b"db1 ssh-ed25519",
    "only a marker": b"@revoked",
    "a marker and too few fields": b"@revoked ssh-ed25519 " + KEY,
    "a comment for a key": b"db1 # ssh-ed25519 " + KEY,
    "an unknown marker": b"@trusted " + GOOD,
    "a marker in capitals": b"@REVOKED " + GOOD,
    "two markers": b"@revoked @revoked " + GOOD,
    "a marker without a name": b"@ " + GOOD,
    "a key that is not base64": GOOD + b"%%%",
    "a truncated key": GOOD[:-2],
    "too much padding": GOOD + b"====",
    "a key of another type": GOOD.replace(b"ssh-ed25519", b"ssh-rsa"),
    "a key shorter than its type": b"db1 ssh-ed25519 AAAAC3Nz",
    "a certificate": make_line("db1", make_key(9, "ssh-ed25519-cert-v01@openssh.com"), end=""),
    "a key of protocol 1": b"db1 1024 35 1234567890123456789",
    "a type that is not ASCII": b"db1 ssh-\xff " + KEY,
    "a hash of an unknown kind": GOOD.replace(b"db1", hash_name("db1").replace("|1|", "|2|").encode()),
    "a hash without salt": GOOD.replace(b"db1", b"|1|" + hash_name("db1").encode().split(b"|")[3]),
    "a truncated hash": GOOD.replace(b"db1", hash_name("db1")[:-4].encode()),
    "a hash and a name": GOOD.replace(b"db1", hash_name("db2").encode() + b",db1"),
    "binary data": b"\xff\x00\xfe\x01",
}


@pytest.mark.parametrize("line", INVALID.values(), ids=INVALID)
def test_invalid_line_is_logged_once_and_ignored(line: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "known_hosts"
    file.write_bytes(b"# a comment\n" + line + b"\n" + make_line("db2", NEW))
    known = KnownHosts.read([file])
    assert known.key_types("db1", 22) == ()
    assert verdict(known, "db1", 22, OLD) is UnknownHostKey
    assert verdict(known, "db2", 22, NEW) is None, "the lines after it are still read"
    [record] = caplog.records
    assert (record.name, record.levelno) == ("peerstage.ssh", logging.WARNING)
    assert f"{file}:2 " in record.getMessage()
    assert record.getMessage().isprintable()


def test_warnings_about_a_binary_file_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    KnownHosts.read([b"\x7fELF\n" * 5000])
    assert len(caplog.messages) == 101
    assert caplog.messages[-1] == "known_hosts data: 4900 more lines are invalid and ignored."


# --- sources ---------------------------------------------------------------------------------------------------------


def test_missing_file_is_ignored_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = KnownHosts.read([tmp_path / "nowhere", os.devnull, make_line("db1", OLD)])
    assert verdict(known, "db1", 22, OLD) is None
    assert caplog.messages == []


def directory(path: Path) -> None:
    path.mkdir()


def fifo_without_a_writer(path: Path) -> None:
    os.mkfifo(path)


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def file_larger_than_the_bound(path: Path) -> None:
    path.write_bytes(make_line("db1", OLD))
    os.truncate(path, 64 * 1024 * 1024 + 1)


@pytest.mark.parametrize("make", [directory, fifo_without_a_writer, link_to_itself, file_larger_than_the_bound])
@pytest.mark.usefixtures("leaves_nothing")
def test_source_is_logged_and_ignored_if_it_is_a(
    make: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "known\nhosts"
    make(path)
    known = KnownHosts.read([path, make_line("db2", NEW)])
    assert verdict(known, "db1", 22, OLD) is UnknownHostKey
    assert verdict(known, "db2", 22, NEW) is None
    [warning] = caplog.messages
    assert "known\\nhosts" in warning
    assert warning.isprintable()


def test_path_with_a_nul_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    KnownHosts.read(["known\0hosts"])
    assert "known\\x00hosts cannot be read" in caplog.text


def test_tilde_is_the_home_directory(own_home: Path) -> None:
    (own_home / "hosts").write_bytes(make_line("db1", OLD))
    assert verdict(KnownHosts.read(["~/hosts"]), "db1", 22, OLD) is None


def test_without_sources_no_host_is_trusted() -> None:
    assert "no known_hosts file is given" in error_message(KnownHosts.read([]), "db1", 22, OLD)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("hashed", [False, True], ids=["plain", "hashed"])
def test_hundred_thousand_lines_are_searched_in_seconds(hashed: bool) -> None:
    names = (hash_name(f"db{i}", b"%020d" % i) if hashed else f"db{i}.example.com,db{i}" for i in range(100_000))
    data = b"".join(make_line(name, make_key(i)) for i, name in enumerate(names))
    began = time.monotonic()
    known = KnownHosts.read([data])
    assert verdict(known, "db99999", 2222, make_key(99_999)) is None
    assert time.monotonic() - began < 20


# --- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("openssh")
def test_fingerprint_equals_that_of_ssh_keygen(tmp_path: Path) -> None:
    for kind in ("ed25519", "ecdsa", "rsa"):
        run_ssh_keygen("-q", "-t", kind, "-N", "", "-f", tmp_path / kind)
        blob = base64.b64decode((tmp_path / f"{kind}.pub").read_bytes().split()[1])
        assert fingerprint(blob) == run_ssh_keygen("-l", "-f", tmp_path / kind).split()[1]


def test_unknown_key_error_names_the_searched_files_and_the_next_step(tmp_path: Path) -> None:
    user, system = tmp_path / "known hosts", tmp_path / "system"
    text = error_message(KnownHosts.read([user, system, b"#"]), "db1", 2222, NEW)
    assert f"presents the ssh-ed25519 key {fingerprint(NEW)}" in text
    assert f"no key is known for [db1]:2222 (searched: {user}, {system}, known_hosts data)" in text
    assert "`ssh-keyscan -p 2222 db1`" in text
    assert text.endswith(f"then add them to '{user}'.")


def test_unknown_key_error_names_one_next_step_if_trust_can_add_the_key() -> None:
    with pytest.raises(UnknownHostKey) as caught:
        KnownHosts.read([]).check("db1", 22, ED25519, NEW, trust="peerstage trust db1")
    assert caught.value.message.endswith("then add the key with `peerstage trust db1`.")
    assert "ssh-keyscan" not in caught.value.message


def test_changed_key_error_names_both_keys_and_the_line(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_bytes(b"#\n" + make_line("db1", OLD) + make_line("db1", make_key(7)))
    text = error_message(KnownHosts.read([file]), "db1", 22, NEW)
    assert f"presents the ssh-ed25519 key {fingerprint(NEW)}" in text
    assert f"the known key of db1 is {fingerprint(OLD)} in {file}:2 (and 1 more of this type)" in text


@pytest.mark.usefixtures("openssh")
@pytest.mark.parametrize("port", [22, 2222])
def test_command_in_the_changed_key_error_removes_the_old_key(port: int, tmp_path: Path) -> None:
    file = tmp_path / "known hosts"
    file.write_bytes(make_line("db1" if port == 22 else "[db1]:2222", OLD))
    run_ssh_keygen("-q", "-H", "-f", file)
    [command] = re.findall("`(ssh-keygen .*?)`", error_message(KnownHosts.read([file]), "DB1", port, NEW))
    run_ssh_keygen(*shlex.split(command)[1:])
    assert file.read_bytes() == b""


def test_changed_key_error_names_the_line_of_given_data() -> None:
    text = error_message(KnownHosts.read([b"#\n" + make_line("db1", OLD)]), "db1", 22, NEW)
    assert "remove line 2 of the known_hosts data" in text


def test_revoked_key_error_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_bytes(make_line("db1", OLD) + make_line("*", OLD, "@revoked"))
    text = error_message(KnownHosts.read([file]), "db1", 22, OLD)
    assert f"presents the ssh-ed25519 key {fingerprint(OLD)}, which is marked @revoked in {file}:2" in text


@pytest.mark.parametrize("data", [b"", make_line("*", NEW), make_line("*", OLD, "@revoked")])
def test_messages_are_one_printable_line_for_any_host_and_file_name(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a\nb\u202e"
    file.write_bytes(data)
    known = KnownHosts.read([file])
    for host in ("db1\r\n\x1b[31m", "\ud800\udcff"):
        assert error_message(known, host, 2222, OLD)


# --- properties ------------------------------------------------------------------------------------------------------


@examples(100)
@given(
    data=st.binary(max_size=200)
    | st.lists(st.sampled_from([b"@revoked", b"*", b"|1|", b"db1", b" ", b"\n", b"\0", KEY[:-1], b"ssh-ed25519"])).map(
        b"".join
    ),
    host=st.text(max_size=20) | st.just("db1"),
    port=st.integers(1, 65535),
    key_type=st.text(max_size=20) | st.just(ED25519),
    blob=st.binary(max_size=80) | st.just(OLD),
)
def test_arbitrary_bytes_are_neither_fatal_nor_trusted(
    data: bytes, host: str, port: int, key_type: str, blob: bytes
) -> None:
    known = KnownHosts.read([data])
    assert known.key_types(host, port) == ()
    with pytest.raises((UnknownHostKey, ChangedHostKey, RevokedHostKey)) as caught:
        known.check(host, port, key_type, blob)
    assert "\n" not in caught.value.message


def test_result_does_not_depend_on_other_threads() -> None:
    class Interrupted(KnownHosts):
        """Checks another host whenever a result is cached, as another thread could."""

        is_other = False
        interruptions = 0

        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "_last_found" and value is not None and not self.is_other:
                self.is_other = True
                Interrupted.interruptions += 1
                self.key_types("db2", 22)
                self.is_other = False

    known = Interrupted.read([make_line("db1", OLD) + make_line("db2", NEW)])
    assert verdict(known, "db1", 22, OLD) is None
    assert verdict(known, "db1", 22, NEW) is ChangedHostKey
    assert Interrupted.interruptions > 1


HOSTS = st.text("ab.", min_size=1, max_size=3)
BARE = HOSTS | st.text("abAB.*?", min_size=1, max_size=4)
PATTERNS = st.builds(
    lambda negated, name, port: negated + (f"[{name}]:{port}" if port else name),
    st.sampled_from(["", "", "", "!"]),
    BARE,
    st.sampled_from(["", "", "2222", "22", "*"]),
)
LINES = st.tuples(
    st.sampled_from(["", "", "", "@revoked", "@cert-authority"]),
    st.lists(PATTERNS, min_size=1, max_size=3).map(",".join)
    | HOSTS.map(hash_name)
    | HOSTS.map(lambda host: hash_name(f"[{host}]:2222")),
)


@pytest.mark.usefixtures("openssh")
@examples(40)
@given(lines=st.lists(LINES, min_size=1, max_size=8), host=HOSTS, port=st.sampled_from([22, 2222]))
def test_verdict_follows_from_the_lines_that_ssh_keygen_finds(
    lines: list[tuple[str, str]], host: str, port: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "known_hosts_property"
    file.write_bytes(b"".join(make_line(names, make_key(i), marker) for i, (marker, names) in enumerate(lines, 1)))
    with_port = find_lines(file, host if port == 22 else f"[{host}]:{port}")
    bare = find_lines(file, host)
    trusted = {n for n, marker in with_port.items() if not marker} or {n for n, marker in bare.items() if not marker}
    revoked = {n for n, marker in (with_port | bare).items() if marker == "REVOKED"}

    known = KnownHosts.read([file])
    verdicts = {n: verdict(known, host, port, make_key(n)) for n in range(1, len(lines) + 1)}
    assert {n for n, kind in verdicts.items() if kind is None} == trusted
    assert {n for n, kind in verdicts.items() if kind is RevokedHostKey} == revoked
    assert known.key_types(host, port) == ((ED25519,) if trusted else ())
