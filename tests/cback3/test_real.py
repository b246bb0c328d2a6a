"""The real cback3 of this environment, by its own program: through itself and through us it leaves the same.

As root for a backup user, in cron's environment, it is run in a container: tests/containers/test_cback3.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cback3.conftest import Site
from support.programs import rcp_command
from support.site import FIVE_LINES, TAKES_AWAY

pytestmark = pytest.mark.cback3

PROGRAM = Path(sys.executable).with_name("cback3")


def configure(site: Site, collect: Path, here: Path, *, ours: bool) -> None:
    options, scp = site.options, rcp_command(site.server.ssh_arguments())
    site.config_path.write_text(
        f"<?xml version='1.0'?>\n<cb_config>\n<options><starting_day>monday</starting_day>"
        f"<working_dir>{options.workingDir}</working_dir><backup_user>{options.backupUser}</backup_user>"
        f"<backup_group>{options.backupGroup}</backup_group><rcp_command>{scp}</rcp_command></options>\n"
        f"<stage><staging_dir>{site.staging}</staging_dir>\n"
        f"<peer><name>here</name><type>local</type><collect_dir>{here}</collect_dir></peer>\n"
        f"<peer><name>{site.server.host}</name><type>remote</type><collect_dir>{collect}</collect_dir></peer>\n"
        "<peer><name>down.invalid</name><type>remote</type><collect_dir>/c</collect_dir></peer>\n"
        f"</stage>\n{FIVE_LINES if ours else ''}\n</cb_config>\n"
    )


def run(site: Site) -> subprocess.CompletedProcess[str]:
    log = site.config_path.with_name("log")
    command = [str(PROGRAM), "--config", str(site.config_path), "--logfile", str(log), "stage"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def tree(directory: Path) -> dict[str, tuple[int, int, int, bytes]]:
    found = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(directory))] = (status.st_mode, status.st_uid, status.st_gid, data)
    return found


def test_a_run_leaves_the_same_tree_and_says_the_same_of_who_was_not_ready(site: Site, tmp_path: Path) -> None:
    collect, here = tmp_path / "collect", tmp_path / "here"
    left = []
    for ours in (False, True):
        for directory in (site.staging, collect, here):
            subprocess.run(["rm", "-rf", str(directory)], check=True)
        collect.mkdir()
        here.mkdir()
        for path in (collect / "cback.collect", here / "cback.collect", here / ".dot"):
            path.touch()
        (collect / "private").write_bytes(b"p" * 100_000)
        (collect / "private").chmod(0o600)
        configure(site, collect, here, ours=ours)
        done = run(site)
        assert done.returncode == 0, done
        assert [line for line in done.stdout.splitlines() if "down.invalid" in line and "not ready" in line] != []
        left.append((tree(site.staging), tree(collect), tree(here)))
    assert left[0] == left[1]
    assert len(left[1][0]) == 11


def test_named_stage_it_takes_the_place_of_the_built_in_action(site: Site, tmp_path: Path) -> None:
    assert FIVE_LINES.count("\n") == 4
    assert TAKES_AWAY.count("\n") == 0
    configure(site, tmp_path, tmp_path, ours=True)
    site.settings.write_text("[stage]\nnonsense = 1\n")
    done = run(site)
    assert done.returncode == 6
    assert "Line 2: there is no 'nonsense' here" in done.stdout + done.stderr
    subprocess.run(TAKES_AWAY.replace("/etc/cback3.conf", str(site.config_path)), shell=True, check=True)
    assert run(site).returncode == 0
