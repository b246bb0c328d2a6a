"""A run of the plan that ``init`` makes of a configuration has the same result as the real ``cback3 stage``."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cback3.conftest import Site
from cback3.test_real import configure, run, tree
from cli.command import Command
from peerstage.exit_codes import ExitCode
from peerstage.paths import MANIFEST_NAMES

pytestmark = pytest.mark.cback3

#: What a run of a plan adds to the staging pool.
OWN = {".peerstage-runs", "latest", *MANIFEST_NAMES}


def without_own(entries: dict[str, tuple[int, int, int, bytes]]) -> dict[str, tuple[int, int, int, bytes]]:
    return {name: entry for name, entry in entries.items() if not OWN.intersection(Path(name).parts)}


def test_a_run_of_the_imported_plan_leaves_the_same_tree_as_cback3(site: Site, tmp_path: Path) -> None:
    collect, here, plan = tmp_path / "collect", tmp_path / "here", tmp_path / "plan.toml"
    command = Command(site.server)
    results = []
    for is_plan in (False, True):
        for directory in (site.staging, collect, here):
            subprocess.run(["rm", "-rf", str(directory)], check=True)
            directory.mkdir()
        for path in (collect / "cback.collect", here / "cback.collect"):
            path.touch()
        (here / ".dot").write_bytes(b"dot")
        (collect / "private").write_bytes(b"p" * 100_000)
        (collect / "private").chmod(0o600)
        configure(site, collect, here, extended=False)
        if is_plan:
            done = command("init", "--from-cback", site.config_path, "--output", plan)
            assert done.returncode == 0, done.stderr
            done = command("run", "--plan", plan)
            assert done.returncode == ExitCode.UNREACHED, done
            assert "down.invalid" in done.stdout
        else:
            assert run(site).returncode == 0
        results.append((without_own(tree(site.staging)), tree(collect), tree(here)))
    assert results[0] == results[1]
    assert len(results[1][0]) == 11
