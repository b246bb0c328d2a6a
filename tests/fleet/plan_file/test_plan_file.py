"""Plans in TOML: what they mean, and how every mistake is named by its path."""

from __future__ import annotations

import datetime
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from peerstage import Limits, Retry, SSHOptions, StageOptions
from peerstage.errors import ConfigurationError, NotAvailable, PlanError
from peerstage.exit_codes import ExitCode, code_of
from peerstage.fleet.plan import FleetPlan, PeerJob
from peerstage.fleet.plan_file import parse_plan, read_plan
from peerstage.fleet.secrets import Secret
from peerstage.reasons import Reason
from support.guide_blocks import find_block

#: The example of the guide's page on plans.
EXAMPLE = find_block("plan", "staging = ")
#: A plan with one peer, db1, whose keys follow.
ONE_PEER = 'staging = "/s"\n[defaults]\nuser = "u"\ncollect_dir = "/c"\n[peers.db1]\n'


def parse(text: str) -> FleetPlan:
    return parse_plan(text.encode(), "/etc/peerstage/plan.toml")


def parse_peer(keys: str) -> PeerJob:
    return parse(ONE_PEER + keys).peers[0]


def problems_of(text: str) -> list[str]:
    with pytest.raises(PlanError) as caught:
        parse(text)
    return list(caught.value.problems)


# What a plan means


def test_the_example_is_the_plan_that_python_would_make() -> None:
    common = {
        "user": "backup",
        "local_user": "backup",
        "collect_dir": "/var/backup/collect",
        "retry": Retry(connect=4),
        "indicator_max_age": 20 * 3600,
        "overdue_after": 30 * 3600,
        "link_dest": True,
    }
    ssh = SSHOptions(jump="bastion.example.com")
    assert parse(EXAMPLE) == FleetPlan(
        staging="/srv/staging",
        parallel=4,
        bwlimit=20 << 20,
        until=datetime.time(6, 0),
        min_free=50 << 30,
        keep_days=14,
        source="/etc/peerstage/plan.toml",
        peers=(
            PeerJob(name="db1", **common),
            PeerJob(name="db2", host="db2.example.com", ssh=SSHOptions(port=2222), min_bytes=100 << 20, **common),
            PeerJob(name="web1", stage=StageOptions(exclude=["*.tmp"]), **common),
            PeerJob(name="mirror", mark=False, **common),
            PeerJob(name="legacy", transport="guarded", **common),
            PeerJob(
                name="laptop", group="office", ssh=ssh, ignore_failures="all", **{**common, "overdue_after": 8 * 86_400}
            ),
        ),
    )


def test_a_plan_without_optional_keys_has_the_defaults_of_python() -> None:
    job = PeerJob(name="db1", user="u", collect_dir="/c")
    assert parse(ONE_PEER) == FleetPlan(staging="/s", peers=(job,), source="/etc/peerstage/plan.toml")


def test_every_other_key_of_the_plan() -> None:
    plan = parse(
        'staging = "/s"\ncomplete_only = true\nowner = "0:0"\nmode = "0750"\nstarting_day = "Sunday"\n'
        'min_free = 1048576\nuntil = 06:30:00\n[hooks]\nbefore = ["/bin/a", "b c"]\nafter = ["/bin/d"]\n'
        'after_peer = []\n[peers]\ndb1 = { user = "u", collect_dir = "/c" }\n'
    )
    assert (plan.complete_only, plan.ownership, plan.directory_mode, plan.starting_day) == (True, (0, 0), 0o750, 6)
    assert (plan.min_free, plan.until) == (1 << 20, datetime.time(6, 30))
    assert (plan.before, plan.after, plan.after_peer) == (("/bin/a", "b c"), ("/bin/d",), ())


def test_every_other_key_of_a_peer() -> None:
    job = parse_peer(
        'identity = "~/.ssh/id"\nknown_hosts = ["/a", "/b"]\npassword = { file = "/p" }\npassphrase = { env = "P" }\n'
        'include = "*.gz"\nchecksums = "SUMS.gz"\nallow_empty = true\nignore_failures = "weekly"\n'
        'transport = "rcp"\nrcp_command = "/usr/bin/scp -B"\n'
    )
    assert (job.ssh.identity, job.ssh.known_hosts) == (("~/.ssh/id",), ("/a", "/b"))
    assert (job.password, job.passphrase) == (Secret(file="/p"), Secret(env="P"))
    assert job.stage == StageOptions(include="*.gz", checksums="SUMS.gz", verify="sha256")
    assert (job.allow_empty, job.ignore_failures) == (True, "weekly")
    assert (job.transport, job.rcp_command, job.limits) == ("rcp", "/usr/bin/scp -B", Limits())


def test_a_local_peer_needs_no_user_and_ignores_what_it_inherits() -> None:
    plan = parse('staging = "/s"\n[defaults]\nport = 22\n[peers]\nhere = { transport = "local", collect_dir = "/c" }\n')
    assert plan.peers[0].is_local


def test_a_peer_overrides_its_group_and_the_group_overrides_the_defaults() -> None:
    plan = parse(
        'staging = "/s"\n[defaults]\nuser = "d"\ncollect_dir = "/d"\nexclude = ["d1", "d2"]\nmark = false\n'
        '[groups.g]\nuser = "g"\nexclude = ["g"]\nmark = true\n[groups.other]\nuser = "other"\n'
        '[peers]\na = {}\nb = { group = "g" }\nc = { group = "g", user = "p", exclude = [] }\n'
    )
    assert [(job.user, job.stage.exclude, job.mark) for job in plan.peers] == [
        ("d", ("d1", "d2"), False),
        ("g", ("g",), True),
        ("p", (), True),
    ]
    assert [job.name for job in plan.select(("g",))] == ["b", "c"]


def test_a_peer_revokes_what_it_would_inherit_with_none() -> None:
    plan = parse(
        'staging = "/s"\n[defaults]\nuser = "u"\ncollect_dir = "/c"\nlocal_user = "l"\nchecksums = "S"\n'
        'indicator_max_age = "1h"\noverdue_after = "1h"\nmin_bytes = 1\npassword = { env = "P" }\n'
        'passphrase = { env = "P" }\nignore_failures = "all"\n[peers.db1]\nlocal_user = "none"\nchecksums = "none"\n'
        'indicator_max_age = "none"\noverdue_after = "none"\nmin_bytes = "none"\npassword = "none"\n'
        'passphrase = "none"\nignore_failures = "none"\n'
    )
    assert plan.peers == (PeerJob(name="db1", user="u", collect_dir="/c", ignore_failures="none"),)


@pytest.mark.parametrize("transport", ["guarded", "rcp"])
def test_link_dest_may_be_a_default_where_some_peers_cannot_link(transport: str) -> None:
    plan = parse(
        f'staging = "/s"\n[defaults]\nuser = "u"\ncollect_dir = "/c"\nlink_dest = true\n[peers]\na = {{}}\n'
        f'b = {{ transport = "{transport}" }}\n'
    )
    assert [(job.link_dest, job.can_link) for job in plan.peers] == [(True, True), (True, False)]


def test_a_plan_with_secrets_is_pickled_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P", "hunter2")
    plan = parse(ONE_PEER + 'password = { env = "P" }\n')
    assert b"hunter2" not in pickle.dumps(plan)
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_a_byte_order_mark_and_carriage_returns_are_accepted() -> None:
    assert parse_plan(b"\xef\xbb\xbf" + ONE_PEER.replace("\n", "\r\n").encode(), "/p") is not None


# Mistakes

#: Keys of the peer db1, and what is reported about it.
PEER_MISTAKES = {
    "prot = 22": "prot: unknown, did you mean port?",
    "collectDir = 1": "collectDir: unknown, did you mean collect_dir?",
    "port = 0": "port: must be 1 to 65535, not 0",
    'port = "22"': "port: must be a whole number, not a string",
    "port = true": "port: must be a whole number, not true or false",
    'host = "a b"': "host: Peer name must not begin with a dash",
    'user = ""': "user: Remote user must be a non-blank string",
    'collect_dir = "c"': "collect_dir: must be an absolute path, not 'c'",
    'identity = "keys/id"': "identity[0]: must be an absolute path, or begin with ~: 'keys/id'",
    'jump = "a b"': "jump: 'a b' is not a list of jump hosts",
    'transport = "ftp"': "transport: must be one of 'auto', 'sftp', 'scp', 'rcp', 'guarded', 'local'",
    'ignore_failures = "never"': "ignore_failures: must be one of 'none', 'all', 'daily', 'weekly'",
    'mark = "no"': "mark: must be true or false, not a string",
    'indicator_max_age = "20"': "indicator_max_age: must be a duration such as 90m, 20h or 8d",
    "indicator_max_age = 20": 'indicator_max_age: must be a duration such as "20h", in quotes',
    'overdue_after = "0h"': "overdue_after: must be a number above 0, not 0",
    'min_bytes = "many"': "min_bytes: must be a number of bytes, or one with K, M, G or T: 'many'",
    "min_bytes = 1.5": "min_bytes: must be a number of bytes, or a string such as",
    "connect_retries = 1001": "connect_retries: must be 1000 or less",
    'min_bytes = "8388608T"': "min_bytes: must be less than 8388608T",
    "connect_retries = -1": "connect_retries: must be 0 or more",
    'exclude = ["a/b"]': "exclude[0]: must be patterns for names, which have no slash",
    "exclude = [1]": "exclude[0]: must be a string, not a number",
    "exclude = { a = 1 }": "exclude: must be a list of strings, not a table",
    'checksums = "a/b"': "checksums: must be ",
    'checksums = "S"\nexclude = "S"': "exclude: must be patterns that do not match the checksum file",
    'rcp_command = "x"': "rcp_command: has no effect with the transport 'auto'",
    'transport = "rcp"\nrcp_command = "x \\" y"': "rcp_command: A double quote is not closed",
    'transport = "local"\nport = 22': "port: has no effect with the transport 'local'",
    'group = "office"': "group: there is no group 'office'; add [groups.office]",
    "host_key = 1": "host_key: does not belong here: only a plan in Python can set it",
    "parallel = 1": "parallel: does not belong here: set it at the top of the file, before the first [table]",
    "before = []": "before: does not belong here: set it in [hooks]",
    'password = { file = "p" }': "password: file must be an absolute path",
    'password = { env = "A B" }': "password: env must be the name of an environment variable",
    'password = { env = "A", file = "/p" }': "password: must have either file or env",
    "password = {}": "password: must have either file or env",
    "password = { fil = 1 }": "password.fil: unknown, did you mean file?",
    "password = { env = 1 }": "password.env: must be a string, not a number",
}


@pytest.mark.parametrize(("keys", "expected"), PEER_MISTAKES.items(), ids=PEER_MISTAKES)
def test_a_mistake_in_a_peer_is_named_by_its_path(keys: str, expected: str) -> None:
    (problem,) = problems_of(ONE_PEER + keys)
    assert problem.startswith(f"peers.db1.{expected}")


#: A whole plan, and everything that is reported.
PLAN_MISTAKES = {
    'staging = "s"': "staging: must be an absolute path, not 's'",
    "parallel = 0": "parallel: must be a number from 1 to 256, not 0",
    'bwlimit = "1"': "bwlimit: must be 1024 or more bytes per second, not 1",
    'until = "24:00"': 'until: must be a time of day such as "06:00"',
    "min_free = -1": "min_free: must be a number of bytes, not -1",
    "keep_days = 0": "keep_days: must be a number of days from 1 to 36500, not 0",
    "complete_only = 1": "complete_only: must be true or false, not a number",
    'owner = "nobody-here:0"': "owner: must be a name that this machine knows: it has no user 'nobody-here'",
    "owner = 0": 'owner: must be such as "backup:backup", in quotes',
    "mode = 0o750": 'mode: must be an octal mode such as "0750", in quotes',
    'mode = "4750"': "mode: must be an octal mode such as 640, 777 at most: '4750'",
    'starting_day = "mon"': "starting_day: must be one of monday, tuesday,",
    "paralel = 4": "paralel: unknown, did you mean parallel?",
    "hooks = 3": "hooks: must be a table, not a number",
    'hooks.before = "/bin/a b"': "hooks.before: must be a list of strings, not a string",
    'hooks.befor = ["a"]': "hooks.befor: unknown, did you mean before?",
    "hooks.timeout = 3": "hooks.timeout: unknown; the keys here are before, after, after_peer",
    "directory_mode = 3": "directory_mode: unknown, did you mean mode?",
    "user = 3": "user: does not belong here: set it in [defaults], in a group or for a peer",
    "group.office = {}": "group: unknown, did you mean [groups]?",
    "notify.x = 1": "notify: unknown, the tables are [hooks], [defaults], [groups.NAME], [peers]",
    "defaults.group = 'x'": "defaults.group: does not belong here: set it for a peer",
    "groups.db1 = {}": "groups.db1: a peer has this name, too; choose another",
    "groups.a.prot = 1": "groups.a.prot: unknown, did you mean port?",
    "groups.'a b' = {}": 'groups."a b": Peer name must not begin with a dash',
}


@pytest.mark.parametrize(("line", "expected"), PLAN_MISTAKES.items(), ids=PLAN_MISTAKES)
def test_a_mistake_outside_the_peers_is_named_by_its_path(line: str, expected: str) -> None:
    staging = "" if line.startswith("staging") else 'staging = "/s"\n'
    (problem,) = problems_of(f'{staging}{line}\n[peers]\ndb1 = {{ user = "u", collect_dir = "/c" }}\n')
    assert problem.startswith(expected)


#: Names of peers, as a plan might have them.
NAME_MISTAKES = {
    "db1.example.com = {}": 'peers.db1: a name with dots needs quotes: "db1.example.com"',
    "10.0.0.1 = { port = 1 }": 'peers.10: a name with dots needs quotes: "10.0.0.1"',
    '"a b" = {}': 'peers."a b": Peer name must not begin with a dash',
    '".x" = {}': 'peers.".x": must be a name that does not begin with a dot',
    '"cback.stage" = {}': 'peers."cback.stage": must be another name than that of the master',
    '"" = {}': 'peers."": Peer name must be a non-blank string',
    f'"{"a" * 256}" = {{}}': f"peers.{'a' * 256}: must be a name of at most 255 bytes",
    'db1 = "db1.example.com"': "peers.db1: must be a table, not a string",
}


@pytest.mark.parametrize(("line", "expected"), NAME_MISTAKES.items(), ids=lambda text: text[:20])
def test_a_name_that_no_peer_can_have_is_refused(line: str, expected: str) -> None:
    (problem,) = problems_of(f'staging = "/s"\n[defaults]\nuser = "u"\ncollect_dir = "/c"\n[peers]\n{line}\n')
    assert problem.startswith(expected)


def test_everything_that_is_missing_is_named() -> None:
    assert problems_of("") == ["staging: is missing", "peers: is missing"]
    assert problems_of("staging = '/s'\n[peers]\n") == ["peers: must not be empty"]
    assert problems_of("staging = '/s'\n[peers]\ndb1 = {}\nhere = { transport = 'local' }\n") == [
        "peers.db1.collect_dir: is missing; set it here or in [defaults]",
        "peers.db1.user: is missing; set it here or in [defaults]",
        "peers.here.collect_dir: is missing; set it here or in [defaults]",
    ]


def test_all_mistakes_are_reported_at_once_and_none_as_the_consequence_of_another() -> None:
    assert problems_of(
        'staging = "s"\n[defaults]\nuser = ""\ncolect_dir = "/c"\n[groups.office]\nuser = 3\ncollect_dir = "/c"\n'
        '[groups.lab]\nport = 0\n[peers]\ndb1 = { group = "office", prot = 1, mark = 2 }\ndb2 = { group = "ofice" }\n'
        'db3 = { group = "lab", collect_dir = "/c", checksums = "S", include = ["*.gz"] }\n'
        'db4 = { user = "u", collect_dir = "/c", checksums = "S", include = ["*.gz"] }\n'
    ) == [
        "staging: must be an absolute path, not 's'",
        "defaults.user: Remote user must be a non-blank string without NUL: ''",
        "defaults.colect_dir: unknown, did you mean collect_dir?",
        "groups.office.user: must be a string, not a number",
        "groups.lab.port: must be 1 to 65535, not 0",
        "peers.db1.mark: must be true or false, not a number",
        "peers.db1.prot: unknown, did you mean port?",
        "peers.db2.group: there is no group 'ofice', did you mean office?",
        "peers.db4.include: must be patterns of which one matches the checksum file, not ('*.gz',)",
    ]


def test_a_contradiction_is_reported_once_where_it_was_written() -> None:
    peers = "".join(f"db{number} = {{}}\n" for number in range(200))
    assert problems_of(
        'staging = "/s"\n[defaults]\nuser = "u"\ncollect_dir = "/c"\nchecksums = "S"\nexclude = "S"\n[peers]\n' + peers
    ) == ["defaults.exclude: must be patterns that do not match the checksum file, not ('S',)"]


def test_the_report_is_bounded() -> None:
    found = problems_of('staging = "/s"\n[peers]\n' + "".join(f"db{number} = {{}}\n" for number in range(200)))
    assert len(found) == 101
    assert found[-1] == "and 300 more problems"
    (long,) = problems_of(ONE_PEER + f'"{"x" * 100_000}" = 1\n')
    assert len(long) == 400


@pytest.mark.parametrize("key", ["\\u001b[2J", "a\\nb", "\\u202Ex", "\\u2028"])
def test_a_hostile_key_or_value_is_one_printable_line(key: str) -> None:
    for text in (
        f'{ONE_PEER}"{key}" = 1\n',
        f'{ONE_PEER}host = "{key}"\n',
        f'{ONE_PEER}group = "{key}"\n',
        f'{ONE_PEER}[peers."{key}"]\n',
        f'{ONE_PEER}[groups."{key}"]\n',
    ):
        with pytest.raises(PlanError) as caught:
            parse(text)
        assert str(caught.value).isprintable()
        assert all(problem.isprintable() for problem in caught.value.problems)


@pytest.mark.parametrize(
    "keys",
    [
        'password = "hunter2"',
        'passphrase = ["hunter2"]',
        'password = { file = "hunter2" }',
        'password = { env = "hunter2!" }',
    ],
)
def test_a_password_written_into_the_plan_is_not_shown(keys: str) -> None:
    (problem,) = problems_of(ONE_PEER + keys)
    assert "hunter2" not in problem


SYNTAX_MISTAKES = {
    "a = /srv": "line 1, column 5: Invalid value; write strings in quotes",
    "[peers]\ndb1 = {}\ndb1 = {}\n": "line 3, column 9: Cannot overwrite a value; the key or table occurs twice",
    "[peers]\n[peers]\n": "line 2, column 7: Cannot declare ('peers',) twice",
    "[peers]\na = { b = }\n": "line 2, column 11: Invalid value; write strings in quotes",
    "a = ": "Invalid value; write strings in quotes, at the end of the file",
    "[peers]\nd\u00e9 = {}\n": "line 2, column 2: ",
    "a = " + "[" * 5000: "lists or tables are nested too deeply",
    "a = " + "9" * 5000: "Exceeds the limit",
}


@pytest.mark.parametrize(("text", "expected"), SYNTAX_MISTAKES.items(), ids=lambda text: text[:20])
def test_a_syntax_error_is_named_by_its_line(text: str, expected: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse(text)
    (problem,) = caught.value.problems
    assert problem.startswith(expected)
    assert str(caught.value).startswith("/etc/peerstage/plan.toml: Not TOML: ")


@pytest.mark.parametrize("depth", [300, 400, 450, 480, 100_000])
@pytest.mark.parametrize(
    "nest",
    [
        lambda depth: f"a = {'[' * depth}{']' * depth}",
        lambda depth: f"a = {'{a=' * depth}1{'}' * depth}",
        lambda depth: f"[peers.{'.'.join('a' * min(depth, 3000))}]",
        lambda depth: f"[peers.db1.password]\n{'.'.join('a' * min(depth, 3000))} = 1",
    ],
    ids=["lists", "tables", "names", "keys"],
)
def test_deep_nesting_is_a_mistake_like_any_other(nest: Callable[[int], str], depth: int) -> None:
    assert problems_of(nest(depth))


def test_bytes_that_are_not_utf_8_are_named_by_their_line() -> None:
    with pytest.raises(PlanError, match="line 2: it is not UTF-8"):
        parse_plan(b"# a\n# \xff\n", "/p")


def test_a_plan_error_survives_pickling() -> None:
    with pytest.raises(PlanError) as caught:
        parse("parallel = 0\n")
    error = pickle.loads(pickle.dumps(caught.value))
    assert (str(error), error.problems) == (str(caught.value), caught.value.problems)


# The file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(EXAMPLE)
    path.chmod(0o644)
    return path


def test_a_plan_is_read_from_a_file_and_through_a_symlink(path: Path) -> None:
    link = path.with_name("link.toml")
    link.symlink_to(path)
    assert read_plan(path).source == str(path)
    assert read_plan(link).peers == read_plan(path).peers


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
@pytest.mark.parametrize("is_linked", [False, True])
def test_a_plan_that_others_can_write_is_refused(path: Path, mode: int, is_linked: bool) -> None:
    path.chmod(mode)
    if is_linked:
        link = path.with_name("link.toml")
        link.symlink_to(path)
        path = link
    with pytest.raises(ConfigurationError, match=rf"Other users can write to it. Run `chmod go-w {path}`") as caught:
        read_plan(path)
    assert caught.value.reason is Reason.INSECURE_CONFIGURATION


@pytest.mark.usefixtures("root")
def test_a_plan_of_another_user_is_refused(path: Path) -> None:
    os.chown(path, 65534, -1)
    with pytest.raises(ConfigurationError, match=rf"Run `chown 0 {path} && chmod go-w {path}`"):
        read_plan(path)


def test_a_missing_plan_is_created_by_init(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no such plan. Create one with `peerstage init`") as caught:
        read_plan(tmp_path / "plan.toml")
    assert code_of(caught.value) is ExitCode.USAGE


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (Path.mkdir, "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.write_text("#" * (4 << 20) + "#"), "larger than 4194304 bytes"),
        (lambda path: path.symlink_to(path), "symbolic links"),
    ],
    ids=["a directory", "a FIFO", "a device", "too large", "a loop"],
)
def test_anything_but_a_small_regular_file_is_refused(
    tmp_path: Path, create: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "plan.toml"
    create(path)
    with pytest.raises(ConfigurationError, match=f"cannot be read: .*{message}"):
        read_plan(path)


def test_without_the_extra_one_line_says_what_to_install(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("peerstage.fleet.plan_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(NotAvailable, match=r"needs an extra: pip install 'peerstage\[fleet\]'"):
        read_plan(path)


@pytest.mark.usefixtures("fresh_interpreter")
def test_a_plan_in_python_needs_no_extra() -> None:
    code = "import sys, peerstage.fleet.plan, peerstage.fleet.plan_file; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
