"""A plan made from cback3's configuration: as cback3 itself reads it, with peerstage's settings beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape as escape_xml

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cback3.conftest import local, remote
from peerstage.cback3.config_file import read_config
from peerstage.cback3.import_plan import import_plan
from peerstage.cback3.settings import Settings, settings_path
from peerstage.cback3.staging_plan import read_plan as read_staging_plan
from peerstage.errors import ConfigurationError
from peerstage.fleet.plan import FleetPlan
from peerstage.fleet.plan_file import parse_plan
from peerstage.fleet.plan_file.new_plan import NewPlan
from peerstage.peer.local import LocalPeer
from peerstage.peer.remote import RemotePeer
from peerstage.reasons import Reason
from support.examples import examples
from support.quick import quick_directory

#: A configuration as sites have it, with parts that a stage does not need.
CONFIG = """<?xml version="1.0"?>
<!-- Ours. -->
<cb_config>
   <reference><author>me</author></reference>
   <options>
      <starting_day>tuesday</starting_day>
      <working_dir>/opt/backup/tmp</working_dir>
      <backup_user>{user}</backup_user>
      <backup_group>{group}</backup_group>
      <rcp_command>/usr/bin/scp -B</rcp_command>
   </options>
   <peers>
      <peer><name>unused</name><type>local</type><collect_dir>/unused</collect_dir></peer>
   </peers>
   <stage>
      <staging_dir>/opt/backup/staging</staging_dir>
      <peer><name>debian</name><type>local</type><collect_dir>/opt/backup/collect</collect_dir></peer>
      <peer>
         <name>db1.example.com</name><type>remote</type><collect_dir>/opt/backup/collect</collect_dir>
         <ignore_failures>daily</ignore_failures>
      </peer>
      <peer>
         <name>db2</name><type>remote</type><collect_dir>/srv/a &amp; b</collect_dir><backup_user>bob</backup_user>
         <rcp_command>/usr/bin/scp -1 -B</rcp_command><managed>Y</managed>
      </peer>
   </stage>
   <store><source_dir>/opt/backup/staging</source_dir></store>
</cb_config>
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    import grp

    path = tmp_path / "cback3.conf"
    path.write_text(CONFIG.format(user="daemon", group=grp.getgrgid(1).gr_name))
    return path


def import_file(path: Path, settings: str | None = None) -> NewPlan:
    settings_file = Path(settings_path(str(path)))
    if settings is not None:
        settings_file.write_text(settings)
        settings_file.chmod(0o600)
    found = Settings(str(settings_file))
    found.read()
    return import_plan(read_config(str(path)), found)


def load(plan: NewPlan) -> FleetPlan:
    return parse_plan(plan.to_toml().encode(), "/plan.toml")


def test_the_plan_is_what_the_configuration_says(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    plan = load(import_file(path))
    assert (plan.staging, plan.starting_day, plan.ownership) == ("/opt/backup/staging", 1, (1, 1))
    assert [(job.name, job.transport, job.collect_dir) for job in plan.peers] == [
        ("debian", "local", "/opt/backup/collect"),
        ("db1.example.com", "auto", "/opt/backup/collect"),
        ("db2", "auto", "/srv/a & b"),
    ]
    assert [(job.user, job.local_user, job.ignore_failures) for job in plan.peers[1:]] == [
        ("daemon", "daemon", "daily"),
        ("bob", "daemon", None),
    ]


def test_only_root_sets_owners_and_connects_as_another_user(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    plan = load(import_file(path))
    assert plan.ownership is None
    assert {job.local_user for job in plan.peers} == {None}


def test_the_peers_section_applies_if_the_stage_section_has_no_peers(path: Path) -> None:
    before = path.read_text().partition("<stage>")[0]
    path.write_text(f"{before}<stage><staging_dir>/s</staging_dir></stage></cb_config>")
    assert [*import_file(path).peers] == ["unused"]


def test_settings_of_peerstage_become_keys(path: Path) -> None:
    plan = load(
        import_file(
            path,
            "[stage]\nparallel = 3\nbwlimit = 1M\nexclude = lost+found *.tmp\nport = 2222\nidentity = /a /b\n"
            "known_hosts = /k\njump = gw\n[peer db2]\ntransport = rcp\nport = 22\nchecksums = SUMS\nexclude = none\n",
        )
    )
    db1, db2 = plan.peers[1:]
    assert (plan.parallel, plan.bwlimit) == (3, 3 << 20)
    assert (db1.ssh.port, db1.ssh.identity, db1.ssh.known_hosts, db1.ssh.jump) == (2222, ("/a", "/b"), ("/k",), "gw")
    assert (db2.transport, db2.rcp_command, db2.ssh.port) == ("rcp", "/usr/bin/scp -1 -B", 22)
    assert [job.stage.exclude for job in plan.peers] == [("lost+found", "*.tmp"), ("lost+found", "*.tmp"), ()]
    assert [job.stage.checksums for job in plan.peers] == [None, None, "SUMS"]


def test_what_a_plan_has_no_key_for_is_noted_with_the_peers(path: Path) -> None:
    notes = import_file(
        path,
        "[stage]\nhost_key = strict\nssh_config = none\nconnect_timeout = 9\nelevate = sudo x\ndurable = no\n"
        "preserve_times = yes\nmax_size = 1G\npartial_dir = /p\ndeadline = 90\n[peer db2]\nbwlimit = 2M\n",
    ).notes
    remote_only = "of db1.example.com, db2 can be made only in Python."
    every = "of debian, db1.example.com, db2 can be made only in Python."
    assert sorted(notes) == sorted(
        [
            "cback3 runs '/usr/bin/scp -1 -B', and peerstage does not; set the port or key that it names for db2.",
            "The setting bwlimit = 2097152 of db2 can be made only in Python.",
            f"The setting host_key = 'strict' {remote_only}",
            f"The setting ssh_config = () {remote_only}",
            f"The setting connect_timeout = 9.0 {remote_only}",
            f"The setting elevate = 'sudo x' {remote_only}",
            f"The setting durable = 'no' {every}",
            f"The setting preserve_times = 'yes' {every}",
            f"The setting max_size = 1073741824 {every}",
            f"The setting partial_dir = '/p' {every}",
            f"The setting deadline = 90.0 {every}",
        ]
    )


def test_a_setting_for_an_unknown_peer_is_refused(path: Path) -> None:
    with pytest.raises(ConfigurationError, match="'db3' is not a remote peer"):
        import_file(path, "[peer db3]\nport = 1\n")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<options>", "<option>", "It is not XML: mismatched tag: line "),
        ("cb_config>", "config>", "<cb_config> is missing"),
        ("<stage>", "<x/></cb_config><stage>", "It is not XML"),
        ('<?xml version="1.0"?>', "<!DOCTYPE x [<!ENTITY e SYSTEM '/etc/passwd'>]>", "document type declaration"),
        ('<?xml version="1.0"?>', "<!DOCTYPE x SYSTEM 'http://127.0.0.1/x.dtd'>", "document type declaration"),
        ('version="1.0"', 'version="1.0" encoding="x-unknown"', "It is not XML"),
        ("<author>me", "<author>&e;", "It is not XML: undefined entity"),
    ],
    ids=["a tag", "the root", "two roots", "an entity", "an external DTD", "an encoding", "a use"],
)
def test_what_is_not_a_configuration_is_refused(path: Path, old: str, new: str, message: str) -> None:
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ConfigurationError, match=message) as caught:
        import_file(path)
    assert caught.value.path == str(path)


def test_a_huge_or_special_file_is_refused(path: Path) -> None:
    path.write_text(" " * ((4 << 20) + 1))
    with pytest.raises(ConfigurationError, match="larger than 4194304 bytes"):
        import_file(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigurationError, match="not a regular file") as caught:
        import_file(path)
    assert caught.value.reason is Reason.CONFIGURATION_UNREADABLE


def test_deep_elements_are_no_problem(path: Path) -> None:
    path.write_text("<cb_config>" + "<a>" * 20_000 + "</a>" * 20_000 + "</cb_config>")
    with pytest.raises(ValueError, match="no <options> or no <stage>"):
        import_file(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<backup_user>daemon</backup_user>", "", "backup_user must be filled in"),
        ("<starting_day>tuesday</starting_day>", "<starting_day/>", "starting_day must be filled in"),
        ("<staging_dir>/opt/backup/staging</staging_dir>", "", "staging_dir must be filled in"),
        ("<name>db2</name>", "<name>debian</name>", "Two peers have the name 'debian'"),
        ("<name>db2</name>", "", "name must be filled in"),
        ("<collect_dir>/srv/a &amp; b</collect_dir>", "", "collect_dir must be filled in"),
    ],
)
def test_what_is_missing_is_named(path: Path, old: str, new: str, message: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        import_file(path)


# The real cback3

#: Texts of elements that cback3 accepts, most of them unusual, and of a few that it does not.
TEXTS = {
    "name": ("db1", " db2 ", "<![CDATA[x]]>", "a<!-- -->b", "&amp;x", "x<y/>z", ""),
    "type": ("local", "local", "remote", "remote", " local", "other"),
    "collect_dir": ("/c", "/c<!-- -->d", "/a &amp; b", "", "relative"),
    "staging_dir": ("/s", "/s<y/>", ""),
    "ignore_failures": ("none", "all", "daily", "weekly", "", " all"),
    "starting_day": ("monday", "sunday", "", "Monday"),
    "backup_user": ("backup", " ", ""),
    "backup_group": ("backup", ""),
    "rcp_command": ("/usr/bin/scp -B", "scp<!-- -->x", ""),
    "working_dir": ("/tmp", ""),
    "other": ("x",),
}


def element(name: str, content: str) -> str:
    return f"<{name}>{content}</{name}>"


@st.composite
def sections(draw: st.DrawFn, name: str, *names: str, inner: st.SearchStrategy[str] | None = None) -> str:
    """An element with others in it: *names*, in any order and number, and *inner*."""
    simple = [element(child, draw(st.sampled_from(TEXTS[child]))) for child in names if draw(st.integers(0, 4))]
    again = draw(st.lists(st.sampled_from(names).map(lambda child: element(child, TEXTS[child][0])), max_size=2))
    more = [] if inner is None else draw(st.lists(inner, max_size=4))
    return element(name, "\n".join(draw(st.permutations([*simple, *again, *more]))))


PEERS = sections("peer", "name", "type", "collect_dir", "ignore_failures", "backup_user", "rcp_command", "other")
SECTIONS = (
    sections("options", "starting_day", "working_dir", "backup_user", "backup_group", "rcp_command", "other")
    | sections("stage", "staging_dir", "other", inner=PEERS)
    | sections("peers", "other", inner=PEERS)
)


def stage_attributes(config: Any) -> Any:
    """Return what a stage reads of a configuration object."""

    def peers(section: Any, *more: str) -> Any:
        names = ("name", "collectDir", "ignoreFailureMode")
        return section and (
            [[getattr(peer, name) for name in names] for peer in section.localPeers or ()],
            [
                [getattr(peer, name) for name in (*names, "remoteUser", "rcpCommand")]
                for peer in section.remotePeers or ()
            ],
            [getattr(section, name) for name in more],
        )

    options = config.options
    names = ("startingDay", "workingDir", "backupUser", "backupGroup", "rcpCommand")
    return (
        options and [getattr(options, name) for name in names],
        peers(config.stage, "targetDir"),
        peers(config.peers),
    )


@pytest.mark.cback3
@examples(30)
@given(st.lists(SECTIONS, max_size=4))
def test_any_configuration_that_cback3_reads_is_read_like_it(found: list[str]) -> None:
    from CedarBackup3.config import Config

    text = element("cb_config", "\n".join(found))
    try:
        expected = stage_attributes(Config(xmlData=text, validate=False))
    except ValueError:  # a value that its objects refuse, such as a relative path
        return
    with quick_directory() as directory:
        path = directory / "cback3.conf"
        path.write_text(text)
        assert stage_attributes(read_config(str(path))) == expected


@pytest.mark.cback3
def test_the_plan_is_the_same_as_from_the_object_of_cback3(path: Path) -> None:
    from CedarBackup3.config import Config

    none = Settings(settings_path(str(path)))
    assert import_plan(Config(xmlPath=str(path), validate=False), none) == import_file(path)


@pytest.mark.cback3
def test_the_plan_has_the_peers_of_the_extended_action(path: Path) -> None:
    """What `peerstage run` does with the plan is what the extended action does with cback3's own object."""
    from CedarBackup3.config import Config

    text = "[stage]\nport = 2222\nexclude = *.tmp\n[peer db2]\ntransport = guarded\nidentity = /i\n"
    plan = load(import_file(path, text))
    own = Settings(settings_path(str(path)))
    own.read()
    action = read_staging_plan(Config(xmlPath=str(path), validate=False), own)
    assert (plan.staging, plan.ownership, plan.starting_day) == (
        action.staging_directory,
        action.ownership,
        action.starting_day,
    )
    for job, expected in zip(plan.peers, action.peers, strict=True):
        peer = job.build_peer()
        assert type(peer) is type(expected)
        for name in ("name", "collectDir", "ignoreFailureMode", "stage", "limits"):
            assert getattr(peer, name) == getattr(expected, name)
        if isinstance(peer, RemotePeer) and isinstance(expected, RemotePeer):
            for name in ("remoteUser", "localUser", "rcpCommand", "transport", "guarded"):
                assert getattr(peer, name) == getattr(expected, name)
            assert repr(peer.ssh) == repr(expected.ssh)
        else:
            assert isinstance(peer, LocalPeer)


def test_a_value_is_taken_over_literally(path: Path) -> None:
    """cback3 strips nothing; what a plan cannot have is refused, rather than changed."""
    import_plan(read_config(str(path)), Settings("/none"))
    path.write_text(path.read_text().replace("<name>db2</name>", f"<name>{escape_xml(' db2 ')}</name>"))
    assert " db2 " in import_file(path).peers


def test_objects_without_optional_attributes_are_accepted(path: Path) -> None:
    config = read_config(str(path))
    config.stage.localPeers = [local("here", "/c", "weekly")]
    config.stage.remotePeers = [remote("db1", "/c")]
    assert import_plan(config, Settings("/none")).peers["here"]["ignore_failures"] == "weekly"
