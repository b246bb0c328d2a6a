"""Every code block of README and the guide runs as it stands, or is checked by a parser."""

from __future__ import annotations

import base64
import configparser
import contextlib
import getpass
import hashlib
import inspect
import io
import re
import shlex
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import pytest

from guide.site import Site
from peerstage import SSHOptions, cback3
from peerstage.cback3.settings import Settings
from peerstage.fleet.plan_file import parse_plan, read_plan
from peerstage.ssh.config.resolve import resolve_destination
from support.guide_blocks import MASTER_SETUP, PEER_SETUP, ROOT, TIMER_SETUP, Block, read_all_blocks
from support.programs import sftp_server_path
from support.sshd import Sshd, free_port

BLOCKS = read_all_blocks()
#: The scheduler of the examples.
DASK_ADDRESS = "tcp://scheduler.example.com:8786"
#: The peer of the examples.
SPEC = "backup@db1.example.com:/var/backup/collect"
#: A configuration of cback3.
CBACK3_CONFIG = (
    "<cb_config><options><starting_day>monday</starting_day><backup_user>root</backup_user>"
    "<backup_group>0</backup_group></options><stage><staging_dir>/s</staging_dir>"
    "<peer><name>db1</name><type>remote</type><collect_dir>/c</collect_dir></peer></stage></cb_config>"
)
#: Words of examples that need a real sshd, an embedded server, or another Python.
SLOW = ("ssh_server", "peerstage demo", "executeRemoteCommand", "--elevate", "dask scheduler", "from distributed")
#: Pages whose examples have a plan.
PLAN_PAGES = ("every-night", "dask", "pruning")


def expected_output(block: Block) -> str | None:
    """Return the text block that follows a Python block, which is its output."""
    following = BLOCKS[BLOCKS.index(block) + 1 :][:1]
    is_output = following and following[0].page == block.page and following[0].language == "text"
    return following[0].text if is_output and "print(" in block.text else None


def pattern_of(output: str) -> str:
    """Return a pattern for *output* with other numbers and fingerprints."""
    return re.sub(r"\d+", r"\\d+", re.sub(r"SHA256:\S+", r"SHA256:\\S+", re.escape(output)))


def run_python(block: Block, site: Site, request: pytest.FixtureRequest) -> None:
    if "executeRemoteCommand" in block.text:
        reach_sshd(site, request.getfixturevalue("sshd"))
        site.replacements |= {'"/usr/bin/cback3"': '"/bin/echo"'}
    if "CONNECTION_REFUSED" in block.text and "except" in block.text:
        site.replacements["port=2222"] = f"port={free_port()}"
    if 'localUser="backup"' in block.text:  # which needs root, and that account; tests/containers has both
        site.replacements |= {', localUser="backup"': "", ', util.getUidGid("backup", "backup")': "", '"web1"': '"db1"'}
    if "in sweep(" in block.text:
        (site.staging / ".peerstage-0123abcd").mkdir()
    if block.page in PLAN_PAGES:
        site.write_plan()
    if "from distributed" in block.text:
        site.cluster.start_scheduler(["dask", "scheduler"])
        site.cluster.start_worker(["dask", "worker", DASK_ADDRESS, "--no-nanny"])
        site.replacements[DASK_ADDRESS] = site.cluster.address
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(site.localize(block.text), f"{block.page}.md", "exec"), names)
        for test in [value for name, value in names.items() if name.startswith("test_")]:
            test(*map(request.getfixturevalue, inspect.signature(test).parameters))
    output = expected_output(block)
    if output is not None:
        assert re.fullmatch(pattern_of(output), "\n".join(sorted(out.getvalue().splitlines())))
    if "in sweep(" in block.text:
        assert out.getvalue() == f"removed {site.staging}/.peerstage-0123abcd\n"


def reach_sshd(site: Site, sshd: Sshd) -> None:
    """Let the names of the examples lead to a real sshd."""
    (site.ssh_directory / "config").write_text(
        f"Host *\n HostName {sshd.host}\n Port {sshd.port}\n IdentityFile {sshd.identity}\n"
        f" UserKnownHostsFile {sshd.known_hosts}\n"
    )
    site.replacements |= {'"backup"': repr(sshd.user), "backup@": f"{sshd.user}@"}


def check_extra(words: list[str], site: Site, request: pytest.FixtureRequest) -> None:
    (extra,) = re.findall(r"\[(\w+)\]", words[-1])
    assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text()


def run_demo(words: list[str], site: Site, request: pytest.FixtureRequest) -> None:
    site.run_verb(["demo", "--small", "3", "--large", "0", "--no-keep"])


def run_quick_start(words: list[str], site: Site, request: pytest.FixtureRequest) -> None:
    """The tests cannot install the package: they run in the environment that it was installed into."""
    if words[-2:] == [".venv/bin/peerstage", "demo"]:
        run_demo(words, site, request)
    else:
        check_markers(words, site, request)


def check_markers(words: list[str], site: Site, request: pytest.FixtureRequest) -> None:
    if words[-1] == "docker/peer" or words[1] == "docker/peer":
        assert f"\n  {words[2]}:" in (ROOT / "docker" / "docker-compose.yml").read_text()
        return
    if words[1].endswith("against.py"):
        assert (ROOT / words[1]).is_file()
        return
    expression = words[words.index("-m", words.index("pytest")) + 1]
    marker = expression.removeprefix("not ")
    assert any(line.startswith(f"{marker}:") for line in request.config.getini("markers"))


def run_elevated(words: list[str], site: Site, request: pytest.FixtureRequest) -> None:
    reach_sshd(site, request.getfixturevalue("sshd"))
    words[words.index("--elevate") + 1] = sftp_server_path()  # the tests' user may have no sudo
    run_peerstage([site.localize(word) for word in words], site, request)


def run_peerstage(words: list[str], site: Site, request: pytest.FixtureRequest) -> None:
    stdin = ""
    if "--checksums" in words:
        site.run_shell(f"cd '{site.collect}'; sha256sum * > {words[words.index('--checksums') + 1]}")
    if "|" in words:
        assert words[: words.index("|")] == ["ssh-keygen", "-lf", "ssh_host_ed25519_key.pub"]
        digest = base64.b64encode(hashlib.sha256(site.host_key.asbytes()).digest()).decode().rstrip("=")
        stdin = f"256 SHA256:{digest} root@db1 (ECDSA)\n"
        words = words[words.index("|") + 1 :]
    site.run_verb(words[1:], stdin)
    if "--dask" in words:
        assert {path.parent.name for path in site.staging.glob("latest/*/data.tar.gz")} == {"db1", "db2", "web1"}


def run_init(words: list[str], site: Site, request: pytest.FixtureRequest) -> None:
    """Write a first plan into a directory of the test, from files that exist there."""
    cback = site.staging / "cback3.conf"
    cback.write_text(CBACK3_CONFIG)
    plan = site.staging / f"plan{len([*site.staging.iterdir()])}.toml"
    if ">" in words:
        words = words[: words.index(">")]
    files = {"/etc/cback3.conf": cback, "~/.ssh/known_hosts": site.ssh_directory / "known_hosts"}
    words = [str(files.get(word, word)) for word in words]
    site.run_verb([*words[1:], "--output", str(plan)])
    assert read_plan(plan).peers


def run_mkdir(words: list[str], site: Site, request: pytest.FixtureRequest) -> None:
    site.run_shell(shlex.join(words))


def run_dask(words: list[str], site: Site, request: pytest.FixtureRequest) -> None:
    (site.cluster.start_scheduler if words[1] == "scheduler" else site.cluster.start_worker)(words)
    site.replacements[DASK_ADDRESS] = site.cluster.address


#: How a command of the examples is run, by its beginning; the first that fits counts.
COMMANDS: dict[str, Callable[[list[str], Site, pytest.FixtureRequest], None]] = {
    "pip install": check_extra,
    "python3 -m venv": run_quick_start,
    ".venv/bin/python": check_markers,
    "peerstage demo": run_demo,
    "peerstage init": run_init,
    "peerstage check --elevate": run_elevated,
    "peerstage ": run_peerstage,
    "ssh-keygen -lf": run_peerstage,
    "mkdir -p": run_mkdir,
    "dask ": run_dask,
}


def run_console(block: Block, site: Site, request: pytest.FixtureRequest) -> None:
    if block.text in (MASTER_SETUP, PEER_SETUP, TIMER_SETUP):
        return  # they change a machine: tests/containers/test_every_night.py runs them
    if block.page in PLAN_PAGES and not block.text.startswith("peerstage init"):
        site.write_plan()
    for line in block.text.replace("/opt/peerstage/bin/", "").splitlines():
        run = next((run for beginning, run in COMMANDS.items() if line.startswith(beginning)), None)
        assert run is not None, f"The tests do not know how to run: {line}"
        run(shlex.split(site.localize(line), comments=True), site, request)


def run_shell_script(block: Block, site: Site, request: pytest.FixtureRequest) -> None:
    indicator = site.collect / "cback.collect"
    data = site.collect / "data.tar.gz"
    site.replacements |= {" -C / etc": f" '{data}'", "chown backup": f"chown {getpass.getuser()}"}
    site.run_shell(site.localize(block.text).replace("tar ", f"test ! -e '{indicator}'; tar "))
    checksums = ["SHA256SUMS"] if "sha256sum" in block.text else []
    assert {path.name for path in site.collect.iterdir()} == {data.name, "etc.tar.gz", indicator.name, *checksums}
    for name in checksums:
        site.run_verb(["stage", "--verify", "sha256", "--checksums", name, site.localize(SPEC), str(site.target)])


def check_ini(block: Block, site: Site, request: pytest.FixtureRequest) -> None:
    path = site.staging / "settings.ini"
    path.write_text(block.text)
    settings = Settings(str(path))
    settings.read()
    assert (settings.parallel, [*settings.section_lines]) == (4, ["db1.example.com"])


def check_ssh_config(block: Block, site: Site, request: pytest.FixtureRequest) -> None:
    path = site.staging / "config"
    path.write_text(block.text)
    destination = resolve_destination("db1", "backup", SSHOptions(config=path))
    assert (destination.host, destination.port) == ("10.1.0.17", 2222)
    assert [str(hop) for hop in destination.hops] == ["jump@bastion.example.com"]


def check_xml(block: Block, site: Site, request: pytest.FixtureRequest) -> None:
    assert ET.fromstring(block.text).tag == "extensions"
    docstring = re.sub(r"\s+", " ", cback3.__doc__ or "")
    assert re.sub(r"\s+", " ", block.text) in docstring


def check_plan(block: Block, site: Site, request: pytest.FixtureRequest) -> None:
    """A whole plan, or a table of one."""
    peer = '[peers]\ndb1 = { user = "u", collect_dir = "/var/backup/collect" }\n'
    is_whole = "[peers]" in block.text
    text = block.text if is_whole else f'staging = "/srv/staging"\n{block.text}\n{peer}'
    plan = parse_plan(text.encode(), "plan.toml")
    assert plan.staging == "/srv/staging"
    assert {job.collect_dir for job in plan.peers} <= {"/var/backup/collect", "/srv/files/collect"}


def check_unit(block: Block, site: Site, request: pytest.FixtureRequest) -> None:
    """Run what the service of systemd runs; a timer has a calendar."""
    unit = configparser.ConfigParser(interpolation=None)
    unit.read_string(block.text)
    if unit.has_section("Timer"):
        assert re.fullmatch(r"\*-\*-\* \d\d:\d\d", unit["Timer"]["OnCalendar"])
        return
    words = shlex.split(unit["Service"]["ExecStart"])
    assert words[0].endswith("/peerstage")
    site.write_plan()
    site.run_verb(words[1:])


def check_nothing(block: Block, site: Site, request: pytest.FixtureRequest) -> None:
    """Output, and lines of other programs' files."""


LANGUAGES: dict[str, Callable[[Block, Site, pytest.FixtureRequest], None]] = {
    "python": run_python,
    "console": run_console,
    "sh": run_shell_script,
    "ini": check_ini,
    "ssh_config": check_ssh_config,
    "xml": check_xml,
    "toml": check_plan,
    "systemd": check_unit,
    "text": check_nothing,
}


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(
            block,
            id=f"{block.page}-{number}-{block.language}",
            marks=[pytest.mark.slow] if any(word in block.text for word in SLOW) else [],
        )
        for number, block in enumerate(BLOCKS)
    ],
)
def test_example_runs(block: Block, site: Site, request: pytest.FixtureRequest) -> None:
    LANGUAGES[block.language](block, site, request)


def test_the_first_python_example_ends_with_the_reason_if_there_is_nothing_to_stage(site: Site) -> None:
    example = next(block.text for block in BLOCKS if block.page == "README" and block.language == "python")
    (site.collect / "cback.collect").unlink()
    with pytest.raises(SystemExit, match=r"^The peer has not collected yet\.$"):
        exec(site.localize(example), {})
    site.replacements["port=2222"] = f"port={free_port()}"
    with pytest.raises(SystemExit, match=r"^127\.0\.0\.1: .* Connection refused"):
        exec(site.localize(example), {})
