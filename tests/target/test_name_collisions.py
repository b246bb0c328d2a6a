"""File systems that take different names for the same one: no file is lost unreported.

No such file system can be mounted everywhere (vfat and casefold ext4 need kernel support), so they are simulated in the
system calls that take a name and the descriptor of a directory, which are all that the target uses.
"""

from __future__ import annotations

import errno
import os
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from target_cases import memory_peer_of, stage_into

from peerstage.errors import IncompleteStage
from peerstage.records import StageReport
from peerstage.stage_options import StageOptions
from peerstage.testing.contract import files_in

COMPOSED, DECOMPOSED = "caf\u00e9".encode(), "cafe\u0301".encode()


def same(name: str) -> str:
    return name


def decomposed(name: str) -> str:
    return unicodedata.normalize("NFD", name)


def without_dots(name: str) -> str:
    return name.rstrip(". ")


@dataclass(frozen=True)
class Folding:
    """A file system: which names it takes for the same, how it stores a new one, and which characters it refuses."""

    fold: Callable[[str], str]
    store: Callable[[str], str] = same
    refused: str = ""

    def resolve(self, name: Any, directory: int | None) -> Any:
        if directory is None or b"/" in os.fsencode(name) or os.fsencode(name) == b".":
            return name
        text = os.fsdecode(name)
        if any(char in text for char in self.refused):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        for there in os.listdir(directory):
            if self.fold(there) == self.fold(text):
                return there
        return self.store(text)


VFAT = Folding(lambda name: without_dots(name).casefold(), without_dots, ':"*?<>|')
KINDS = {
    "casefold ext4": Folding(lambda name: decomposed(name).casefold()),
    "apfs": Folding(lambda name: decomposed(name).casefold()),
    "ntfs": Folding(str.upper),
    "vfat": VFAT,
    "hfsx": Folding(decomposed, decomposed),
}
BY_CASE = [kind for kind in KINDS if kind != "hfsx"]
BY_NORMALISATION = ["casefold ext4", "apfs", "hfsx"]


@pytest.fixture
def target(target: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A target on such a file system, while *kind* is among the test's parameters."""
    kind = KINDS.get(request.node.callspec.params.get("kind", "")) if hasattr(request.node, "callspec") else None
    if kind is None:
        yield target
        return
    simulated = kind
    with monkeypatch.context() as patch:

        def resolving(original: Callable[..., Any]) -> Callable[..., Any]:
            return lambda path, *rest, **options: original(
                simulated.resolve(path, options.get("dir_fd")), *rest, **options
            )

        for name in ("open", "stat", "unlink", "mkdir", "rmdir"):
            patch.setattr(os, name, resolving(getattr(os, name)))
        rename = os.rename

        def renamed(old: Any, new: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
            old, new = simulated.resolve(old, src_dir_fd), simulated.resolve(new, dst_dir_fd)
            rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

        patch.setattr(os, "rename", renamed)
        yield target


def stage_names(target: Path, *names: bytes, content: bytes = b"content of ") -> StageReport:
    """Stage files with these names, each with its own content; return the report, even of a failed stage."""
    try:
        return stage_into(target, memory_peer_of({name: content + name for name in names}))
    except IncompleteStage as exc:
        assert exc.report is not None
        return exc.report


def errors_of(report: StageReport) -> dict[str, str]:
    return {file.name: file.error or "" for file in report.failed}


@pytest.mark.parametrize("kind", BY_CASE)
def test_of_two_names_that_differ_in_case_the_first_is_staged_and_the_second_fails(target: Path, kind: str) -> None:
    report = stage_names(target, b"Dump", b"dump", b"other")
    assert files_in(target) == {b"Dump": b"content of Dump", b"other": b"content of other"}
    assert errors_of(report) == {
        "dump": "The target's file system does not distinguish this name from 'Dump'. Rename one of the files."
    }
    assert report.count == 2


@pytest.mark.parametrize("kind", BY_CASE)
def test_a_file_that_would_be_lost_to_the_manifest_or_replace_it_fails(target: Path, kind: str) -> None:
    for options in (StageOptions(manifest=True), StageOptions(manifest=True), StageOptions()):
        with pytest.raises(IncompleteStage) as raised:
            stage_into(target, memory_peer_of({b"Peerstage.JSON": b"theirs", b"other": b"1"}), options=options)
        assert raised.value.report is not None
        errors = errors_of(raised.value.report)
        assert set(errors) == {"Peerstage.JSON"}
        assert "'peerstage.json'. Rename one of the files." in errors["Peerstage.JSON"]
        assert set(files_in(target)) == {b"other", b"peerstage.json", b"peerstage.sha256"}
        assert b"theirs" not in files_in(target)[b"peerstage.json"]


@pytest.mark.parametrize("kind", BY_NORMALISATION)
@pytest.mark.parametrize("names", [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_of_two_names_that_differ_in_normalization_the_first_is_staged(
    target: Path, kind: str, names: tuple[bytes, bytes]
) -> None:
    report = stage_names(target, *names)
    assert list(files_in(target).values()) == [b"content of " + names[0]]
    assert list(errors_of(report)) == [names[1].decode()]


@pytest.mark.parametrize("kind", KINDS)
def test_staging_again_under_the_same_spelling_overwrites(target: Path, kind: str) -> None:
    names = [b"Dump", b"other", COMPOSED if kind != "vfat" else b"plain", b"\xff"]
    stage_names(target, *names, content=b"old ")
    report = stage_names(target, *names, content=b"new ")
    assert errors_of(report) == {}
    assert sorted(files_in(target).values()) == sorted(b"new " + name for name in names)


@pytest.mark.parametrize("kind", BY_CASE)
def test_an_existing_file_with_another_spelling_is_not_replaced(target: Path, kind: str) -> None:
    (target / "DUMP").write_bytes(b"precious")
    report = stage_names(target, b"dump", b"other")
    assert files_in(target) == {b"DUMP": b"precious", b"other": b"content of other"}
    assert errors_of(report) == {
        "dump": "The target's file system does not distinguish this name from 'DUMP'. Move that file away."
    }


@pytest.mark.parametrize("kind", BY_CASE)
@pytest.mark.parametrize("names", [(b"Dump", b"dump"), (b"dump", b"Dump")])
def test_staging_two_such_names_again_overwrites_the_one_that_was_staged(
    target: Path, kind: str, names: tuple[bytes, bytes]
) -> None:
    (target / "dump").write_bytes(b"old")
    for _ in range(2):
        report = stage_names(target, *names)
        assert files_in(target) == {b"dump": b"content of dump"}
        assert list(errors_of(report)) == ["Dump"]


@pytest.mark.parametrize("kind", ["hfsx", "apfs", "casefold ext4"])
def test_spellings_that_differ_only_in_normalization_are_one_file_across_runs(target: Path, kind: str) -> None:
    stage_names(target, COMPOSED, content=b"old ")
    assert errors_of(stage_names(target, DECOMPOSED, content=b"new ")) == {}
    assert list(files_in(target).values()) == [b"new " + DECOMPOSED]


@pytest.mark.parametrize("kind", ["vfat"])
def test_a_name_that_this_file_system_refuses_fails_that_entry(target: Path, kind: str) -> None:
    report = stage_names(target, b"12:30", b"good", b"good.", b"why?")
    assert files_in(target) == {b"good": b"content of good"}
    assert {name: error.split(":")[0] for name, error in errors_of(report).items()} == {
        "12:30": "The target's file system refuses the name",
        "good.": "The target's file system does not distinguish this name from 'good'. Rename one of the files.",
        "why?": "The target's file system refuses the name",
    }


def test_on_a_case_sensitive_file_system_every_name_is_staged(target: Path) -> None:
    names = (b"Dump", b"dump", b"dump.", COMPOSED, DECOMPOSED, b"12:30", b"\xff", b"\xfe")
    for _ in range(2):
        assert errors_of(stage_names(target, *names)) == {}
        assert set(files_in(target)) == set(names)
