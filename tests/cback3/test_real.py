"""The real cback3 in this environment: its own action and the extended one have the same result.

tests/containers/test_cback3.py runs it as root for a backup user, in the environment of cron.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cback3.conftest import Site
from support.guide_blocks import CBACK3_EXTENSION, CBACK3_REMOVAL
from support.programs import rcp_command

pytestmark = pytest.mark.cback3

PROGRAM = Path(sys.executable).with_name("cback3")


def configure(site: Site, collect: Path, here: Path, *, extended: bool) -> None:
    options, scp = site.options, rcp_command(site.server.ssh_arguments())
    site.config_path.write_text(
        f"<?xml version='1.0'?>\n<cb_config>\n<options><starting_day>monday</starting_day>"
        f"<working_dir>{options.workingDir}</working_dir><backup_user>{options.backupUser}</backup_user>"
        f"<backup_group>{options.backupGroup}</backup_group><rcp_command>{scp}</rcp_command></options>\n"
        f"<stage><staging_dir>{site.staging}</staging_dir>\n"
        f"<peer><name>here</name><type>local</type><collect_dir>{here}</collect_dir></peer>\n"
        f"<peer><name>{site.server.host}</name><type>remote</type><collect_dir>{collect}</collect_dir></peer>\n"
        "<peer><name>down.invalid</name><type>remote</type><collect_dir>/c</collect_dir></peer>\n"
        f"</stage>\n{CBACK3_EXTENSION if extended else ''}\n</cb_config>\n"
    )


def run(site: Site) -> subprocess.CompletedProcess[str]:
    log = site.config_path.with_name("log")
    command = [str(PROGRAM), "--config", str(site.config_path), "--logfile", str(log), "stage"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def tree(directory: Path) -> dict[str, tuple[int, int, int, bytes]]:
    entries = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        entries[str(path.relative_to(directory))] = (status.st_mode, status.st_uid, status.st_gid, data)
    return entries


def test_a_run_leaves_the_same_tree_as_cback3_itself(site: Site, tmp_path: Path) -> None:
    collect, here = tmp_path / "collect", tmp_path / "here"
    results = []
    for extended in (False, True):
        for directory in (site.staging, collect, here):
            subprocess.run(["rm", "-rf", str(directory)], check=True)
        collect.mkdir()
        here.mkdir()
        for path in (collect / "cback.collect", here / "cback.collect", here / ".dot"):
            path.touch()
        (collect / "private").write_bytes(b"p" * 100_000)
        (collect / "private").chmod(0o600)
        configure(site, collect, here, extended=extended)
        done = run(site)
        assert done.returncode == 0, done
        assert [line for line in done.stdout.splitlines() if "down.invalid" in line and "not ready" in line] != []
        results.append((tree(site.staging), tree(collect), tree(here)))
    assert results[0] == results[1]
    assert len(results[1][0]) == 11


def test_an_extension_named_stage_replaces_the_built_in_action(site: Site, tmp_path: Path) -> None:
    assert CBACK3_EXTENSION.count("\n") == 4
    assert CBACK3_REMOVAL.count("\n") == 0
    configure(site, tmp_path, tmp_path, extended=True)
    site.settings.write_text("[stage]\nnonsense = 1\n")
    done = run(site)
    assert done.returncode == 6
    assert "Line 2: unknown key 'nonsense'" in done.stdout + done.stderr
    subprocess.run(CBACK3_REMOVAL.replace("/etc/cback3.conf", str(site.config_path)), shell=True, check=True)
    assert run(site).returncode == 0
