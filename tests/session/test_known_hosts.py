"""What known_hosts lines say about a host; where ssh-keygen has an opinion, it is asked."""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerstage.errors import ChangedHostKey, HostKeyError, MismatchedHostKey, RevokedHostKey, UnknownHostKey
from peerstage.session.known_hosts import KnownHosts, fingerprint

ED25519, RSA, ECDSA = "ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256"


def make_key(seed: int, key_type: str = ED25519) -> bytes:
    """A public key of that type, as far as known_hosts looks into it."""
    name, body = key_type.encode(), hashlib.sha256(b"%d" % seed).digest()
    return len(name).to_bytes(4, "big") + name + len(body).to_bytes(4, "big") + body


def make_line(names: str, key: bytes, marker: str = "", end: str = "\n") -> bytes:
    key_type = key[4 : 4 + key[3]].decode()
    return f"{marker} {names} {key_type} {base64.b64encode(key).decode()}{end}".lstrip().encode()


def hash_name(name: str, salt: bytes = b"0123456789abcdefghij") -> str:
    digest = hmac.digest(salt, name.encode(), "sha1")
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def verdict(known: KnownHosts, host: str, port: int, key: bytes) -> type[HostKeyError] | None:
    """None if the key is trusted, otherwise the kind of error."""
    try:
        known.check(host, port, key[4 : 4 + key[3]].decode(), key)
    except HostKeyError as exc:
        return type(exc)
    return None


def message(known: KnownHosts, host: str, port: int, key: bytes) -> str:
    """What is said about a key that is refused."""
    with pytest.raises(HostKeyError) as caught:
        known.check(host, port, key[4 : 4 + key[3]].decode(), key)
    assert (caught.value.peer, caught.value.path) == ("", None)
    assert caught.value.message.isprintable(), "the message is one line"
    return caught.value.message


def keygen(*args: str | Path, allowed: tuple[int, ...] = (0,)) -> str:
    """Run ssh-keygen. These tests are worth little without it, so its absence is a failure."""
    program = shutil.which("ssh-keygen")
    if program is None:
        pytest.fail("ssh-keygen is not installed. Install the OpenSSH client (Debian: openssh-client).")
    done = subprocess.run([program, *args], capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    assert done.returncode in allowed, done.stderr
    return done.stdout


def lines_found(file: Path, name: str) -> dict[int, str]:
    """The numbers of the lines that ssh-keygen finds for a name, and the marker that it shows for each."""
    shown = keygen("-F", name, "-f", file, allowed=(0, 1))
    return {int(number): marker for number, marker in re.findall(r"^# Host \S+ found: line (\d+) (\w*)", shown, re.M)}


OLD, NEW, OTHER_TYPE = make_key(1), make_key(2), make_key(3, RSA)


# --- names -----------------------------------------------------------------------------------------------------------

NAMES = [
    # names in the line, host, port, whether the line speaks of it
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
def test_line_speaks_of_the_hosts_that_its_names_match(names: str, host: str, port: int, is_known: bool) -> None:
    known = KnownHosts.read([make_line(names, OLD)])
    assert verdict(known, host, port, OLD) is (None if is_known else UnknownHostKey)
    assert known.key_types(host, port) == ((ED25519,) if is_known else ())


@pytest.mark.usefixtures("openssh")
@pytest.mark.parametrize(("names", "host", "port", "is_known"), NAMES, ids=NAME_IDS)
def test_ssh_keygen_agrees_about_the_names(names: str, host: str, port: int, is_known: bool, tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_bytes(make_line(names, OLD))
    assert bool(lines_found(file, host if port == 22 else f"[{host}]:{port}")) is is_known


@pytest.mark.parametrize("names", ["db1.example.com", hash_name("db1.example.com")], ids=["plain", "hashed"])
def test_case_of_the_host_name_does_not_matter(names: str) -> None:
    assert verdict(KnownHosts.read([make_line(names, OLD)]), "DB1.Example.com", 22, OLD) is None


@pytest.mark.parametrize("names", ["db1,db2", "db?,!db2", hash_name("db1")])
def test_empty_host_name_is_nobody(names: str) -> None:
    assert verdict(KnownHosts.read([make_line(names, OLD)]), "", 22, OLD) is UnknownHostKey


@pytest.mark.usefixtures("openssh")
def test_names_that_ssh_keygen_hashed_are_found(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_bytes(make_line("Db1,[db2]:2222,::1", OLD))
    keygen("-q", "-H", "-f", file)
    assert b"db" not in file.read_bytes().lower().replace(b"=", b" ").split()
    known = KnownHosts.read([file])
    assert [verdict(known, *where, OLD) for where in [("db1", 22), ("db2", 2222), ("::1", 22)]] == [None] * 3
    assert verdict(known, "db2", 22, OLD) is UnknownHostKey


def test_pattern_of_many_stars_takes_no_time() -> None:
    known = KnownHosts.read([make_line("*" + "a*" * 500 + "b", OLD)])
    began = time.monotonic()
    assert verdict(known, "a" * 2000, 22, OLD) is UnknownHostKey
    assert time.monotonic() - began < 5


# --- which key -------------------------------------------------------------------------------------------------------


def test_any_of_several_keys_of_a_type_is_trusted() -> None:
    known = KnownHosts.read([make_line("db1", OLD), make_line("db*", NEW)])
    assert (verdict(known, "db1", 22, OLD), verdict(known, "db1", 22, NEW)) == (None, None)


def test_another_key_of_a_known_type_is_a_changed_key() -> None:
    assert verdict(KnownHosts.read([make_line("db1", OLD)]), "db1", 22, NEW) is ChangedHostKey


def test_key_of_another_type_than_the_known_ones_is_mismatched_and_the_known_types_are_named() -> None:
    known = KnownHosts.read([make_line("db1", OTHER_TYPE) + make_line("db1", make_key(4, ECDSA))])
    assert verdict(known, "db1", 22, NEW) is MismatchedHostKey
    assert f"only by other types of keys: {RSA}, {ECDSA} in known_hosts data:1" in message(known, "db1", 22, NEW)


def test_right_key_under_a_wrong_type_is_not_trusted() -> None:
    with pytest.raises(MismatchedHostKey):
        KnownHosts.read([make_line("db1", OLD)]).check("db1", 22, RSA, OLD)


def test_key_types_come_in_the_order_of_the_lines_without_repeats() -> None:
    lines = [make_line("db1", key) for key in (OTHER_TYPE, OLD, make_key(5, RSA), NEW)]
    assert KnownHosts.read(lines).key_types("db1", 22) == (RSA, ED25519)


def test_two_hosts_can_be_asked_about_in_turn() -> None:
    known = KnownHosts.read([make_line("db1", OLD) + make_line("db2", NEW)])
    assert [verdict(known, host, 22, OLD) for host in ("db1", "db2", "db1")] == [None, ChangedHostKey, None]


# --- ports -----------------------------------------------------------------------------------------------------------


def test_key_under_the_bare_name_is_accepted_on_another_port_of_which_nothing_is_known() -> None:
    known = KnownHosts.read([make_line("db1", OLD)])
    assert verdict(known, "db1", 2222, OLD) is None
    assert known.key_types("db1", 2222) == (ED25519,)


def test_other_key_under_the_bare_name_says_nothing_about_another_port() -> None:
    assert verdict(KnownHosts.read([make_line("db1", OLD)]), "db1", 2222, NEW) is UnknownHostKey


@pytest.mark.parametrize(
    ("known_at_port", "expected"),
    [(NEW, ChangedHostKey), (OTHER_TYPE, MismatchedHostKey)],
    ids=["same type", "other type"],
)
def test_bare_name_does_not_count_where_a_key_of_the_port_is_known(
    known_at_port: bytes, expected: type[HostKeyError]
) -> None:
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


def test_revoking_the_old_key_leaves_the_new_one_trusted() -> None:
    known = KnownHosts.read([make_line("db1", OLD), make_line("db1", NEW), make_line("*", OLD, "@revoked")])
    assert verdict(known, "db1", 22, NEW) is None
    assert known.key_types("db1", 22) == (ED25519,)


def test_revocation_in_one_file_counts_against_trust_in_another(tmp_path: Path) -> None:
    user, system = tmp_path / "user", tmp_path / "system"
    user.write_bytes(make_line("db1", OLD))
    system.write_bytes(make_line("*", OLD, "@revoked"))
    assert verdict(KnownHosts.read([user, system]), "db1", 22, OLD) is RevokedHostKey


def test_white_space_of_any_kind_may_follow_a_marker() -> None:
    revoking = make_line("db1", OLD, "@revoked").replace(b"@revoked ", b"@revoked\t \t")
    assert verdict(KnownHosts.read([make_line("db1", OLD), revoking]), "db1", 22, OLD) is RevokedHostKey


def test_key_of_a_certificate_authority_is_no_host_key() -> None:
    known = KnownHosts.read([make_line("*", OLD, "@cert-authority")])
    assert known.key_types("db1", 22) == ()
    assert verdict(known, "db1", 22, NEW) is UnknownHostKey
    assert "@cert-authority in known_hosts data:1 vouches for certificates only" in message(known, "db1", 22, OLD)


def test_key_of_a_certificate_authority_is_no_host_key_beside_one_that_is() -> None:
    known = KnownHosts.read([make_line("db1", OTHER_TYPE), make_line("db1", OLD, "@cert-authority")])
    assert known.key_types("db1", 22) == (RSA,)
    assert verdict(known, "db1", 22, OLD) is MismatchedHostKey


def test_certificate_authority_of_a_port_does_not_hide_the_key_of_the_bare_name() -> None:
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
def test_line_is_read_with(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    assert verdict(KnownHosts.read([data]), "db1", 22, OLD) is None
    assert caplog.messages == []


KEY = base64.b64encode(OLD)
UNREADABLE = {
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
    "a key cut short": GOOD[:-2],
    "padding too much": GOOD + b"====",
    "a key of another type": GOOD.replace(b"ssh-ed25519", b"ssh-rsa"),
    "a key shorter than its type": b"db1 ssh-ed25519 AAAAC3Nz",
    "a certificate": make_line("db1", make_key(9, "ssh-ed25519-cert-v01@openssh.com"), end=""),
    "a key of protocol 1": b"db1 1024 35 1234567890123456789",
    "a type that is not ASCII": b"db1 ssh-\xff " + KEY,
    "a hash of a future kind": GOOD.replace(b"db1", hash_name("db1").replace("|1|", "|2|").encode()),
    "a hash without salt": GOOD.replace(b"db1", b"|1|" + hash_name("db1").encode().split(b"|")[3]),
    "a hash cut short": GOOD.replace(b"db1", hash_name("db1")[:-4].encode()),
    "a hash and a name": GOOD.replace(b"db1", hash_name("db2").encode() + b",db1"),
    "no words at all": b"\xff\x00\xfe\x01",
}


@pytest.mark.parametrize("line", UNREADABLE.values(), ids=UNREADABLE)
def test_line_is_warned_about_once_and_never_trusted_with(
    line: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "known_hosts"
    file.write_bytes(b"# a comment\n" + line + b"\n" + make_line("db2", NEW))
    known = KnownHosts.read([file])
    assert known.key_types("db1", 22) == ()
    assert verdict(known, "db1", 22, OLD) is UnknownHostKey
    assert verdict(known, "db2", 22, NEW) is None, "the lines after it are still read"
    [record] = caplog.records
    assert (record.name, record.levelno) == ("peerstage.session", logging.WARNING)
    assert f"{file}:2 " in record.getMessage()
    assert record.getMessage().isprintable()


def test_file_that_is_something_else_altogether_does_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    KnownHosts.read([b"\x7fELF\n" * 5000])
    assert len(caplog.messages) == 101
    assert caplog.messages[-1] == "known_hosts data: 4900 more lines can not be read."


# --- sources ---------------------------------------------------------------------------------------------------------


def test_file_that_does_not_exist_is_passed_over_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = KnownHosts.read([tmp_path / "nowhere", os.devnull, make_line("db1", OLD)])
    assert verdict(known, "db1", 22, OLD) is None
    assert caplog.messages == []


def directory(path: Path) -> None:
    path.mkdir()


def pipe_that_nobody_writes(path: Path) -> None:
    os.mkfifo(path)


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def file_larger_than_the_bound(path: Path) -> None:
    path.write_bytes(make_line("db1", OLD))
    os.truncate(path, 64 * 1024 * 1024 + 1)


@pytest.mark.parametrize("make", [directory, pipe_that_nobody_writes, link_to_itself, file_larger_than_the_bound])
@pytest.mark.usefixtures("leaves_nothing")
def test_source_is_warned_about_and_passed_over_if_it_is_a(
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


def test_path_that_can_not_be_one_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    KnownHosts.read(["known\0hosts"])
    assert "known\\x00hosts can not be read" in caplog.text


def test_tilde_is_the_home_directory(own_home: Path) -> None:
    (own_home / "hosts").write_bytes(make_line("db1", OLD))
    assert verdict(KnownHosts.read(["~/hosts"]), "db1", 22, OLD) is None


def test_no_source_at_all_trusts_nobody() -> None:
    assert "no known_hosts file is given" in message(KnownHosts.read([]), "db1", 22, OLD)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("hashed", [False, True], ids=["plain", "hashed"])
def test_hundred_thousand_lines_are_read_and_searched_in_seconds(hashed: bool) -> None:
    names = (hash_name(f"db{i}", b"%020d" % i) if hashed else f"db{i}.example.com,db{i}" for i in range(100_000))
    data = b"".join(make_line(name, make_key(i)) for i, name in enumerate(names))
    began = time.monotonic()
    known = KnownHosts.read([data])
    assert verdict(known, "db99999", 2222, make_key(99_999)) is None
    assert time.monotonic() - began < 20


# --- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("openssh")
def test_fingerprint_is_the_one_that_ssh_keygen_shows(tmp_path: Path) -> None:
    for kind in ("ed25519", "ecdsa", "rsa"):
        keygen("-q", "-t", kind, "-N", "", "-f", tmp_path / kind)
        blob = base64.b64decode((tmp_path / f"{kind}.pub").read_bytes().split()[1])
        assert fingerprint(blob) == keygen("-l", "-f", tmp_path / kind).split()[1]


def test_unknown_key_is_shown_with_what_was_searched_and_how_to_learn_it(tmp_path: Path) -> None:
    user, system = tmp_path / "known hosts", tmp_path / "system"
    said = message(KnownHosts.read([user, system, b"#"]), "db1", 2222, NEW)
    assert f"shows the ssh-ed25519 key {fingerprint(NEW)}" in said
    assert f"no key is known for [db1]:2222 (searched: {user}, {system}, known_hosts data)" in said
    assert "`ssh-keyscan -p 2222 db1`" in said
    assert said.endswith(f"then add them to '{user}'.")


def test_changed_key_is_shown_beside_the_known_one_and_its_place(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_bytes(b"#\n" + make_line("db1", OLD) + make_line("db1", make_key(7)))
    said = message(KnownHosts.read([file]), "db1", 22, NEW)
    assert f"shows the ssh-ed25519 key {fingerprint(NEW)}" in said
    assert f"db1 is known by {fingerprint(OLD)} in {file}:2 (and 1 more of this type)" in said


@pytest.mark.usefixtures("openssh")
@pytest.mark.parametrize("port", [22, 2222])
def test_command_that_is_given_for_a_changed_key_removes_it(port: int, tmp_path: Path) -> None:
    file = tmp_path / "known hosts"
    file.write_bytes(make_line("db1" if port == 22 else "[db1]:2222", OLD))
    keygen("-q", "-H", "-f", file)
    [command] = re.findall("`(ssh-keygen .*?)`", message(KnownHosts.read([file]), "DB1", port, NEW))
    keygen(*shlex.split(command)[1:])
    assert file.read_bytes() == b""


def test_changed_key_in_data_is_to_be_removed_there() -> None:
    said = message(KnownHosts.read([b"#\n" + make_line("db1", OLD)]), "db1", 22, NEW)
    assert "remove line 2 of the known_hosts data" in said


def test_revoked_key_is_shown_with_the_line_that_revokes_it(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_bytes(make_line("db1", OLD) + make_line("*", OLD, "@revoked"))
    said = message(KnownHosts.read([file]), "db1", 22, OLD)
    assert f"shows the ssh-ed25519 key {fingerprint(OLD)}, which is marked @revoked in {file}:2" in said


@pytest.mark.parametrize("data", [b"", make_line("*", NEW), make_line("*", OLD, "@revoked")])
def test_messages_stay_one_printable_line_whatever_host_and_file_are_called(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a\nb\u202e"
    file.write_bytes(data)
    known = KnownHosts.read([file])
    for host in ("db1\r\n\x1b[31m", "\ud800\udcff"):
        assert message(known, host, 2222, OLD)


# --- properties ------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
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
def test_arbitrary_bytes_neither_break_anything_nor_are_trusted(
    data: bytes, host: str, port: int, key_type: str, blob: bytes
) -> None:
    known = KnownHosts.read([data])
    assert known.key_types(host, port) == ()
    with pytest.raises((UnknownHostKey, ChangedHostKey, RevokedHostKey)) as caught:
        known.check(host, port, key_type, blob)
    assert "\n" not in caught.value.message


def test_threads_that_look_up_other_hosts_do_not_change_an_answer() -> None:
    class Interrupted(KnownHosts):
        """Another thread looks up another host between any two lines of Python."""

        is_other = False

        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "_last" and value is not None and not self.is_other:
                self.is_other = True
                self.key_types("db2", 22)
                self.is_other = False

    known = Interrupted.read([make_line("db1", OLD) + make_line("db2", NEW)])
    assert verdict(known, "db1", 22, OLD) is None
    assert verdict(known, "db1", 22, NEW) is ChangedHostKey


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
@settings(max_examples=100, deadline=None)
@given(lines=st.lists(LINES, min_size=1, max_size=8), host=HOSTS, port=st.sampled_from([22, 2222]))
def test_verdict_follows_from_the_lines_that_ssh_keygen_finds(
    lines: list[tuple[str, str]], host: str, port: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "known_hosts_property"
    file.write_bytes(b"".join(make_line(names, make_key(i), marker) for i, (marker, names) in enumerate(lines, 1)))
    here = lines_found(file, host if port == 22 else f"[{host}]:{port}")
    bare = lines_found(file, host)
    trusted = {n for n, marker in here.items() if not marker} or {n for n, marker in bare.items() if not marker}
    revoked = {n for n, marker in (here | bare).items() if marker == "REVOKED"}

    known = KnownHosts.read([file])
    verdicts = {n: verdict(known, host, port, make_key(n)) for n in range(1, len(lines) + 1)}
    assert {n for n, kind in verdicts.items() if kind is None} == trusted
    assert {n for n, kind in verdicts.items() if kind is RevokedHostKey} == revoked
    assert known.key_types(host, port) == ((ED25519,) if trusted else ())
