"""New plans: TOML that loads, commented lines included, and a file that nobody's plan is lost to."""

from __future__ import annotations

import base64
import errno
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstage.errors import TargetError
from peerstage.fleet.plan import FleetPlan
from peerstage.fleet.plan_file import parse_plan, read_plan
from peerstage.fleet.plan_file.known_hosts_peers import plan_known_hosts
from peerstage.fleet.plan_file.new_plan import COMMON_KEYS, NewPlan, write_new_file
from peerstage.fleet.plan_file.syntax import parse_toml
from peerstage.fleet.plan_file.toml_writer import format_entry, format_table
from peerstage.reasons import Reason
from peerstage.ssh.data_types import pack_string
from support.examples import examples


def load(plan: NewPlan) -> FleetPlan:
    return parse_plan(plan.to_toml().encode(), "/plan.toml")


# TOML

TEXTS = st.text()


@examples(25)
@given(
    TEXTS,
    st.recursive(st.booleans() | st.integers() | TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner)),
)
def test_what_is_written_is_read_again_and_printable(key: str, value: Any) -> None:
    line = format_entry(key, value)
    assert parse_toml(line.encode(), "/plan.toml") == {key: value}
    assert line.isprintable()


def test_what_is_not_utf_8_is_refused() -> None:
    with pytest.raises(ValueError, match="no form for the byte 0xff"):
        format_entry("collect_dir", os.fsdecode(b"/\xff"))
    with pytest.raises(ValueError, match="no form for None"):
        format_entry("key", None)


# The plan


def test_every_line_that_is_commented_out_is_valid() -> None:
    text = NewPlan(peers={"db1": {**COMMON_KEYS, "group": "office"}}).to_toml()
    active = re.sub(r"^# (?=\[|\w+ = )", "", text, flags=re.MULTILINE).replace("backup:backup", "0:0")
    plan = parse_plan(active.encode(), "/plan.toml")
    assert active.count("\n#") == 1
    assert (plan.parallel, plan.bwlimit, plan.keep_days, len(plan.before)) == (4, 20 << 20, 14, 2)
    assert (plan.peers[0].group, plan.peers[0].ssh.jump) == ("office", "bastion.example.com")


def test_a_note_is_one_line_of_comment() -> None:
    plan = NewPlan(peers={"db1": COMMON_KEYS}, notes=["x\nstaging = 1\x1b[2J\u2028y\udcff"])
    assert "# Note: x\\nstaging = 1\\x1b[2J\\u2028y\\xff\n" in plan.to_toml()
    assert load(plan).staging == "/srv/staging"


def test_settings_and_keys_without_a_comment_are_written_too() -> None:
    plan = load(NewPlan(peers={"db1": {**COMMON_KEYS, "port": 2222}}, settings={"staging": "/s", "parallel": 2}))
    assert (plan.staging, plan.parallel, plan.peers[0].ssh.port) == ("/s", 2, 2222)


LOCAL_KEYS = {
    "collect_dir": st.sampled_from(["/a", "/b"]),
    "exclude": st.sampled_from([("a",), ("b", "c")]),
    "ignore_failures": st.sampled_from(["all", "daily"]),
}
REMOTE_KEYS = {
    **LOCAL_KEYS,
    "user": st.sampled_from(["a", "b"]),
    "port": st.sampled_from([22, 2222]),
    "identity": st.sampled_from([("/i",), ()]),
    "local_user": st.just("l"),
    "transport": st.sampled_from(["sftp", "guarded"]),
}


def peers_with(keys: dict[str, st.SearchStrategy[Any]], *required: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {key: keys[key] for key in required}, optional={key: keys[key] for key in keys if key not in required}
    )


@examples(25)
@given(
    st.dictionaries(
        st.sampled_from(["db1", "db2", "db3", "a.b"]),
        peers_with(REMOTE_KEYS, "user", "collect_dir")
        | peers_with(LOCAL_KEYS, "collect_dir").map(lambda keys: {**keys, "transport": "local"}),
        min_size=1,
    )
)
def test_common_keys_become_defaults_without_a_change_of_meaning(peers: dict[str, dict[str, Any]]) -> None:
    plain = f'staging = "/s"\n{format_entry("peers", peers)}\n'
    expected = parse_plan(plain.encode(), "/plan.toml").peers
    found = load(NewPlan(peers=peers)).peers

    def effective(plan_peers: Any) -> Any:
        # A local peer has no user, whatever the defaults say.
        return [
            (job.name, job.collect_dir, job.stage, job.ignore_failures, job.transport) if job.is_local else job
            for job in plan_peers
        ]

    assert effective(found) == effective(expected)


def test_keys_that_most_peers_share_are_written_once() -> None:
    peers = {f"db{number}": dict(COMMON_KEYS) for number in range(9)} | {"web": {**COMMON_KEYS, "user": "www"}}
    text = NewPlan(peers=peers).to_toml()
    assert text.count("/var/backup/collect") == 1
    assert "db3 = {}\n" in text
    assert f"web = {format_table({'user': 'www'})}\n" in text


# From known_hosts


def known_hosts(*names: str, same: bool = False) -> bytes:
    """Return lines with a key each, or the same one."""
    blobs = [pack_string(b"ssh-ed25519") + pack_string(b"" if same else name.encode()) for name in names]
    lines = (f"{name} ssh-ed25519 {base64.b64encode(blob).decode()}\n" for name, blob in zip(names, blobs, strict=True))
    return "".join(lines).encode()


def test_hosts_of_known_hosts_become_peers() -> None:
    plan = plan_known_hosts(known_hosts("db1,10.0.0.1", "[gw.example.com]:2222", "10.0.0.9", "fe80::1"), {})
    jobs = load(plan).peers
    assert [(job.name, job.host, job.ssh.port) for job in jobs] == [
        ("db1", None, None),
        ("gw.example.com-2222", "gw.example.com", 2222),
        ("10.0.0.9", None, None),
        ("fe80::1", None, None),
    ]
    assert plan.notes == []


def test_an_address_whose_key_is_known_by_a_name_is_no_peer_of_its_own() -> None:
    assert [*plan_known_hosts(known_hosts("10.0.0.1", "db1", same=True), {}).peers] == ["db1"]


def test_two_names_with_one_key_are_both_peers_and_noted() -> None:
    plan = plan_known_hosts(known_hosts("db1", "db1.example.com", same=True), {})
    assert [*plan.peers] == ["db1", "db1.example.com"]
    assert plan.notes == ["db1.example.com and db1 have the same host key, and may be the same host."]


def test_names_that_cannot_be_peers_are_noted() -> None:
    lines = known_hosts("*.example.com", "|1|F1E1KeoE/eEWhi10WpGv4OdiO6Y=|3988QV0VE8wmZL7suNrYQLITLCg=", ".x", "db1")
    plan = plan_known_hosts(lines + b"@revoked " + known_hosts("old") + b"@cert-authority " + known_hosts("ca"), {})
    assert [*plan.peers] == ["db1"]
    assert plan.notes == [
        ".x in line 3 cannot be the name of a peer.",
        "2 lines are hashed, or hold patterns, and name no host.",
    ]


def test_a_file_without_hosts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"names no host\."):
        plan_known_hosts(b"# nothing\n", {})
    with pytest.raises(ValueError, match="names no host: 1 line is hashed"):
        plan_known_hosts(known_hosts("*.example.com"), {})


# The file


def test_the_file_is_for_its_owner_alone_and_in_a_directory_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "peerstage" / "plan.toml"
    write_new_file(str(path), NewPlan(peers={"db1": COMMON_KEYS}).to_toml())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_plan(path).peers[0].name == "db1"


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    path, link = tmp_path / "plan.toml", tmp_path / "link.toml"
    path.write_text("mine")
    link.symlink_to(tmp_path / "nowhere")
    for existing in (path, link):
        with pytest.raises(ValueError, match=f"{existing} exists, and is not overwritten"):
            write_new_file(str(existing), "new")
    assert path.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["link.toml", "plan.toml"]


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TargetError) as caught:
        write_new_file(str(tmp_path / "a" / "b" / "plan.toml"), "x")
    assert caught.value.reason is Reason.TARGET_MISSING

    def fail(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(TargetError, match="No space left") as caught:
        write_new_file(str(tmp_path / "plan.toml"), "x")
    assert caught.value.reason is Reason.NO_SPACE
    assert os.listdir(tmp_path) == []
