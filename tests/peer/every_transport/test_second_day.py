"""The second day of a peer, with links to the files of the first, over every transport."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from peerstage import RemotePeer, StageOptions
from peerstage.records import LINKED
from support.every_transport import CONNECTIONS
from support.files import write_files


@pytest.fixture(params=[*CONNECTIONS, "scp-isolated"])
def connection(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_unchanged_files_are_links_to_those_of_the_first_day(
    unprivileged: RemotePeer, public_path: Path, transport: str
) -> None:
    collect = Path(str(unprivileged.collectDir))
    write_files(collect, same=os.urandom(100_000), changed=b"old", removed=b"", **{"with\nnewline" * 3: b"x"})
    first, second = public_path / "first", public_path / "second"
    first.mkdir()
    second.mkdir()
    unprivileged.stage = StageOptions(preserve_times=True)
    names = 4
    if transport == "scp":
        (collect / ("with\nnewline" * 3)).unlink()
        names = 3
    assert unprivileged.stagePeer(first) == names
    write_files(collect, changed=b"longer", new=b"new")
    (collect / "removed").unlink()
    unprivileged.stage = StageOptions(preserve_times=True, link_dest=str(first))
    if transport == "rcp":
        with pytest.raises(ValueError, match="link_dest"):
            unprivileged.stagePeer(second)
        return
    assert unprivileged.stagePeer(second) == names
    assert unprivileged.last_report is not None
    unchanged = {file.name for file in unprivileged.last_report.files if file.outcome == LINKED}
    assert unchanged == {path.name for path in collect.iterdir()} - {"changed", "new"}
    for path in collect.iterdir():
        staged = second / path.name
        assert staged.read_bytes() == path.read_bytes()
        assert (path.name in unchanged) == ((first / path.name).exists() and staged.samefile(first / path.name))
    assert (first / "changed").read_bytes() == b"old"
