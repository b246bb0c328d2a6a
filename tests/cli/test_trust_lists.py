"""``peerstage trust --fingerprints``: presented keys are compared with a list from the hosts themselves."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest

from cli.command import Command
from cli.host_keys import OTHER, Trust, at, blob, fingerprint_of
from cli.test_terminal import on_terminal, text_of
from peerstage.ssh.keys.public_keys import fingerprint
from support.keys import make_key, public_key
from support.programs import require_program
from support.ssh_server import listening, paramiko_handler
from support.sshd import Sshd, ssh_trusts

NOBODYS = "SHA256:" + "B" * 43
LISTS = {
    "name and fingerprint": "{at} {right}\n",
    "bare name and fingerprint": "# the list\n127.0.0.1,db1 {right}\n",
    "ssh-keygen -lf": "256 {right} {at} (ED25519)\n",
    "ssh-keygen -lf on the host itself": "256 {right} root@db1 (ED25519)\n3072 SHA256:"
    + "A" * 43
    + " root@db1 (RSA)\n",
    "ssh-keyscan": "# 127.0.0.1:22 SSH-2.0-OpenSSH\n{at} ssh-ed25519 {key}\n",
}


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("right", [True, False])
def test_only_listed_keys_are_added(
    trust: Trust, sshd: Sshd, known: Path, tmp_path: Path, kind: str, right: bool
) -> None:
    key = base64.b64encode(blob(sshd)).decode()
    text = LISTS[kind].format(
        at=at(sshd),
        right=fingerprint_of(sshd) if right else "SHA256:" + "B" * 43,
        key=key if right else OTHER,
    )
    (tmp_path / "list").write_text(text)
    done = trust("--yes", "--fingerprints", tmp_path / "list", at(sshd))
    assert done.returncode == (0 if right else 4)
    assert ("NOT ON THE LIST" in done.stdout) is not right
    assert known.exists() is right
    if not right:
        assert fingerprint_of(sshd) in done.stderr


def test_output_of_openssh_is_a_list(trust: Trust, sshd: Sshd, known: Path, tmp_path: Path) -> None:
    scanned = subprocess.run(
        [require_program("ssh-keyscan"), "-p", str(sshd.port), sshd.host], capture_output=True, timeout=60, check=True
    ).stdout
    listed = subprocess.run(
        [require_program("ssh-keygen"), "-lf", "-"], input=scanned, capture_output=True, timeout=60, check=True
    ).stdout
    for number, text in enumerate((scanned, listed)):
        known.unlink(missing_ok=True)
        (tmp_path / f"list{number}").write_bytes(text)
        assert trust("--yes", "--fingerprints", tmp_path / f"list{number}", at(sshd)).returncode == 0
        assert ssh_trusts(sshd, known)


def test_the_listed_key_of_one_host_does_not_confirm_another(
    trust: Trust, own_sshd: Callable[..., Sshd], known: Path, tmp_path: Path
) -> None:
    one, two = own_sshd(), own_sshd()
    (tmp_path / "list").write_text(f"{at(one)} {fingerprint_of(two)}\n256 {fingerprint_of(two)} {at(two)} (ED25519)\n")
    done = trust("--yes", "--fingerprints", tmp_path / "list", at(one), at(two))
    assert done.returncode == 4
    assert known.read_text().split()[0] == at(two)
    assert known.read_text().count("\n") == 1
    known.write_text(f"{at(one)} ssh-ed25519 {base64.b64encode(blob(one)).decode()}\n")
    done = trust("--fingerprints", tmp_path / "list", at(one))
    assert done.returncode == 4, "a known key that is not the one on the list is a reason to look"


# Names


def by_name(sshd: Sshd) -> str:
    return f"[localhost]:{sshd.port}"


def test_a_line_with_another_name_as_comment_confirms_and_the_name_is_shown(
    trust: Trust, sshd: Sshd, known: Path
) -> None:
    listed = f"256 {fingerprint_of(sshd)} root@peer1 (ED25519)\n256 {NOBODYS} root@peer2 (ED25519)\n".encode()
    done = trust("--yes", "--fingerprints", "-", at(sshd), by_name(sshd), stdin=listed)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("new, listed as root@peer1") == 2
    assert known.read_text().count("\n") == 2


def test_a_key_without_a_comment_is_on_the_list(trust: Trust, sshd: Sshd) -> None:
    listed = f"256 {fingerprint_of(sshd)} no comment (ED25519)\n".encode()
    done = trust("--yes", "--fingerprints", "-", at(sshd), by_name(sshd), stdin=listed)
    assert done.returncode == 0
    assert done.stdout.count("new, on the list\n") == 2


REFUSED = {
    "a comment that names another host that is asked": ("256 {key} root@{other} (ED25519)\n", "root@{other}"),
    "a comment, and another key under the host's own name": (
        "256 {key} root@peer1 (ED25519)\n256 {nobodys} root@{at} (ED25519)\n",
        "root@peer1",
    ),
    "a comment, and another key with the host's own name before it": (
        "256 {key} root@peer1 (ED25519)\n{at} {nobodys}\n",
        "root@peer1",
    ),
    "a comment, and another key in a line of known_hosts": (
        "256 {key} root@peer1 (ED25519)\n{at} ssh-ed25519 " + OTHER + "\n",
        "root@peer1",
    ),
    "another name before the fingerprint": ("peer1 {key}\n", "peer1"),
    "another name in a line of known_hosts": ("peer1 ssh-ed25519 {blob}\n", "peer1"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_key_that_is_listed_for_another_host_is_refused_with_that_name(
    trust: Trust, sshd: Sshd, known: Path, kind: str
) -> None:
    line, name = (
        text.format(
            key=fingerprint_of(sshd),
            blob=base64.b64encode(blob(sshd)).decode(),
            at=at(sshd),
            other=by_name(sshd),
            nobodys=NOBODYS,
        )
        for text in REFUSED[kind]
    )
    asked = [at(sshd), by_name(sshd)] if "{other}" in REFUSED[kind][0] else [at(sshd)]
    done = trust("--yes", "--fingerprints", "-", *asked, stdin=line.encode())
    assert done.returncode == 4
    [complaint] = done.stderr.splitlines()
    assert f"which the list of fingerprints has for {name}, not for {at(sshd)}." in complaint
    assert f"`{at(sshd)} {fingerprint_of(sshd)}`" in complaint, "the line that makes it the host's own"
    assert "NOT ON THE LIST" not in done.stdout
    assert f"new, LISTED FOR {name}" in done.stdout
    assert not known.exists() or at(sshd) not in known.read_text()
    added = trust("--yes", "--fingerprints", "-", at(sshd), stdin=f"{at(sshd)} {fingerprint_of(sshd)}\n".encode())
    assert added.returncode == 0, "what the message advises works"


def test_a_name_on_the_list_is_shown_as_one_printable_line(trust: Trust, sshd: Sshd) -> None:
    listed = f"256 {fingerprint_of(sshd)} a\x1b[31mb (ED25519)\n".encode()
    done = trust("--yes", "--fingerprints", "-", at(sshd), stdin=listed)
    assert r"listed as a\x1b[31mb" in done.stdout


# Several keys


@pytest.fixture
def three_keys(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A host with three keys: its name, and its keys as in known_hosts, in our order."""
    paths = {kind: make_key(tmp_path / kind, key_type=kind, bits=2048 if kind == "rsa" else None) for kind in
             ("ed25519", "ecdsa", "rsa")}  # fmt: skip
    keys = {kind: public_key(path) for kind, path in paths.items()}
    first, *others = (
        paramiko.PKey.from_path(path)  # type: ignore[attr-defined]
        for path in paths.values()
    )

    def prepare(transport: paramiko.Transport) -> None:
        for key in others:
            transport.add_server_key(key)

    with listening(paramiko_handler(key=first, prepare=prepare)) as port:
        yield f"[127.0.0.1]:{port}", keys


def of(key: str) -> str:
    return fingerprint(base64.b64decode(key.split()[1]))


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_any_one_listed_key_of_a_host_is_found_and_added(
    trust: Trust, three_keys: tuple[str, dict[str, str]], known: Path, kind: str
) -> None:
    host, keys = three_keys
    done = trust("--yes", "--fingerprints", "-", host, stdin=f"{host} {of(keys[kind])}\n".encode())
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{of(keys[kind])}  new, on the list" in done.stdout
    assert known.read_text() == f"{host} {keys[kind]}\n"


def test_a_host_without_a_listed_key_is_not_listed(
    trust: Trust, three_keys: tuple[str, dict[str, str]], known: Path
) -> None:
    host, keys = three_keys
    done = trust("--yes", "--fingerprints", "-", host, stdin=f"{host} {NOBODYS}\n".encode())
    assert done.returncode == 4
    assert f"{of(keys['ed25519'])}  new, NOT ON THE LIST" in done.stdout
    for key in keys.values():
        assert of(key) in done.stderr
    assert not known.exists()


def test_a_search_for_a_listed_key_is_not_logged_as_one_for_a_pinned_key(
    trust: Trust, three_keys: tuple[str, dict[str, str]]
) -> None:
    host, keys = three_keys
    log = trust("--verbose", "--fingerprints", "-", host, stdin=f"{host} {of(keys['rsa'])}\n".encode()).stderr
    assert "presents a key other than the wanted one; asking for" in log
    assert "pinned" not in log


def test_another_listed_key_of_a_host_does_not_confirm_its_known_key(
    trust: Trust, three_keys: tuple[str, dict[str, str]], known: Path
) -> None:
    host, keys = three_keys
    known.write_text(f"{host} {keys['ed25519']}\n")
    done = trust("--fingerprints", "-", host, stdin=f"{host} {of(keys['ecdsa'])}\n".encode())
    assert done.returncode == 4, "whoever has only the known key could pass the question for the other on to the host"
    assert "known in" in done.stdout
    assert "NOT ON THE LIST" in done.stdout


# What is left to do


def test_listed_keys_need_no_comparison(trust: Trust, sshd: Sshd, known: Path) -> None:
    done = trust("--fingerprints", "-", at(sshd), stdin=f"{at(sshd)} {fingerprint_of(sshd)}\n".encode())
    assert done.returncode == 4
    assert (
        done.stderr
        == "peerstage: 1 new key on the list was not added. Add it with --yes. See: peerstage guide host-keys\n"
    )
    assert not known.exists()


def test_no_word_is_broken_on_a_terminal_of_80_columns(
    command: Command, sshd: Sshd, known: Path, tmp_path: Path
) -> None:
    known.write_text(f"{at(sshd)} {public_key(sshd.home / 'host')}\n")
    (tmp_path / "list").write_text(f"{at(sshd)},{by_name(sshd)} {fingerprint_of(sshd)}\n")
    status, written = on_terminal(
        command, "trust", "--no-config", "--known-hosts", known, "--fingerprints", tmp_path / "list",
        at(sshd), by_name(sshd), typed=b"y\n", columns=80,
    )  # fmt: skip
    assert status == 0
    lines = text_of(written).replace("\r", "").splitlines()
    assert f"{at(sshd)}  known in {known}:1, on the list" in lines
    assert f"{by_name(sshd)}  new, on the list" in lines
    assert lines.count(f"  ssh-ed25519 {fingerprint_of(sshd)}") == 2
    assert any(f"All are on the list. Add 1 new key to {known}? [y/N]" in line for line in lines)


def test_in_a_pipe_a_host_is_one_line_however_long(
    command: Command, sshd: Sshd, known: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known.write_text(f"{at(sshd)} {public_key(sshd.home / 'host')}\n")
    command.environment["COLUMNS"] = "40"
    done = command("trust", "--no-config", "--known-hosts", known, at(sshd))
    assert done.stdout == f"{at(sshd)}  ssh-ed25519  {fingerprint_of(sshd)}  known in {known}:1\n"


# Standard input


def test_hosts_are_read_from_standard_input(trust: Trust, sshd: Sshd, known: Path) -> None:
    done = trust("--yes", "--from", "-", stdin=f"# ours\n\n {at(sshd)}\n".encode())
    assert (done.returncode, done.stderr) == (0, "")
    assert ssh_trusts(sshd, known)


@pytest.mark.usefixtures("openssh")
@pytest.mark.parametrize("kind", ["ssh-keyscan", "ssh-keyscan | ssh-keygen -lf -", "ssh-keygen -lf"])
def test_what_openssh_prints_is_read_from_standard_input(trust: Trust, sshd: Sshd, known: Path, kind: str) -> None:
    command = {
        "ssh-keyscan": [require_program("ssh-keyscan"), "-p", str(sshd.port), sshd.host],
        "ssh-keygen -lf": [require_program("ssh-keygen"), "-lf", str(sshd.home / "host.pub")],
    }
    printed = subprocess.run(command[kind.partition(" |")[0]], capture_output=True, timeout=60, check=True).stdout
    if "|" in kind:
        piped = [require_program("ssh-keygen"), "-lf", "-"]
        printed = subprocess.run(piped, input=printed, capture_output=True, timeout=60, check=True).stdout
    done = trust("--yes", "--fingerprints", "-", at(sshd), by_name(sshd), stdin=printed)
    assert ssh_trusts(sshd, known)
    assert done.returncode == (4 if "keyscan" in kind else 0), "the other name is no other host's in a comment"


def test_standard_input_is_read_once(trust: Trust, assert_one_line: Callable[[str], None]) -> None:
    done = trust("--from", "-", "--fingerprints", "-", stdin=b"db1\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert_one_line(done.stderr)
    assert "standard input" in done.stderr


def test_standard_input_is_limited(
    trust: Trust, monkeypatch: pytest.MonkeyPatch, assert_one_line: Callable[[str], None]
) -> None:
    monkeypatch.setattr("peerstage.cli.fingerprints.MAX_BYTES", 10)
    done = trust("--from", "-", stdin=b"x" * 11)
    assert done.returncode == 2
    assert "larger than 10 bytes" in done.stderr
    assert_one_line(done.stderr)


def test_an_invalid_line_of_standard_input_is_named(trust: Trust) -> None:
    done = trust("--fingerprints", "-", "db1", stdin=b"# ours\ndb1 SHA256:short\n")
    assert done.returncode == 2
    assert "standard input:2 is neither" in done.stderr
    assert "known_hosts data" not in done.stderr
