"""`prune` of any pool: a dry run is the truth, and what must stay, stays. The expectations are computed differently."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from peerstage.fleet.prune import prune
from peerstage.fleet.prune import pruning as prune_module
from peerstage.fleet.results import Flag, Verdict
from support.examples import examples
from support.quick import quick_directory
from support.staged_pool import StagedPool, noon

TODAY = "2026/11/24"
PEERS = ("a", "b", "c")
#: What happens to a day after its runs.
FATES = (*("",) * 16, "foreign", "foreign in a peer", "emptied", "changed", "no manifest", "a link", "a peer is a link")


@dataclass(frozen=True)
class Night:
    """A peer's result of a day: its verdict, the numbers of its files, and whether it is flagged."""

    verdict: Verdict
    files: frozenset[int]
    is_flagged: bool = False


@dataclass(frozen=True)
class Day:
    day: str
    peers: dict[str, Night]
    fate: str
    victim: str
    links: bool
    is_recorded: bool


def nights() -> st.SearchStrategy[Night]:
    numbers = st.frozensets(st.integers(0, 2), min_size=1)
    complete = st.builds(Night, st.just(Verdict.STAGED), numbers)
    return st.one_of(
        complete,
        complete,
        complete,
        st.builds(Night, st.just(Verdict.STAGED), numbers, st.just(True)),
        st.builds(Night, st.just(Verdict.INCOMPLETE), numbers),
        st.builds(Night, st.just(Verdict.FAILED), st.just(frozenset())),
    )


def days_of_pool() -> st.SearchStrategy[list[Day]]:
    dates = st.sampled_from(
        ["2025/12/31", "2026/02/28", "2026/10/01", "2026/10/31", *(f"2026/11/{number}" for number in range(15, 25))]
    )
    day = st.builds(
        Day,
        dates,
        st.dictionaries(st.sampled_from(PEERS), nights(), min_size=1),
        st.sampled_from(FATES),
        st.sampled_from(PEERS),
        st.booleans(),
        st.sampled_from((*(True,) * 8, False)),
    )
    return st.lists(day, min_size=3, max_size=10, unique_by=lambda day: day.day)


def fill(pool: StagedPool, days: list[Day]) -> None:
    """Run all *days*, the oldest first; then let their fates happen."""
    for day in sorted(days, key=lambda day: day.day):
        for name, night in day.peers.items():
            files = {f"file{number}": b"%d" % number * 5000 for number in night.files} or None
            flags = (Flag.SMALLER,) if night.is_flagged else ()
            more = {"verdict": night.verdict, "flags": flags, "links": day.links, "is_recorded": day.is_recorded}
            pool.run(day.day, {name: files}, **more)  # type: ignore[arg-type]
    for day in days:
        happen(pool, day)


def happen(pool: StagedPool, day: Day) -> None:
    path = pool.path / day.day
    peer = path / victim_of(day)
    if day.fate == "foreign":
        (path / "precious").write_bytes(b"precious")
    elif day.fate == "foreign in a peer":
        (peer / "precious").write_bytes(b"precious")
    elif day.fate == "emptied":
        shutil.rmtree(peer)
        peer.mkdir()
    elif day.fate == "no manifest" and (peer / "peerstage.json").exists():
        (peer / "peerstage.json").unlink()
    elif day.fate == "changed":
        for file in peer.glob("file*"):
            file.unlink()  # it may be a link, and other days hold it, too
            file.write_bytes(b"other")
    elif day.fate == "a link":
        path.rename(pool.path / f"away-{path.name}-{path.parent.name}")
        path.symlink_to(pool.path / f"away-{path.name}-{path.parent.name}")
    elif day.fate == "a peer is a link":
        peer.rename(pool.path / f"away-{path.name}-{path.parent.name}-{peer.name}")
        peer.symlink_to(pool.path / f"away-{path.name}-{path.parent.name}-{peer.name}")


def victim_of(day: Day) -> str:
    return day.victim if day.victim in day.peers else next(iter(day.peers))


def is_damaged(day: Day, peer: str) -> bool:
    """Return whether the files of *peer* are not what was staged."""
    return peer == victim_of(day) and day.fate in ("emptied", "changed", "no manifest", "a peer is a link")


def is_foreign(day: Day) -> bool:
    """Return whether the day holds what no run staged."""
    if day.fate in ("no manifest", "changed"):
        return bool(day.peers[victim_of(day)].files)
    return day.fate in ("foreign", "foreign in a peer", "a peer is a link")


def is_complete(night: Night) -> bool:
    return night.verdict is Verdict.STAGED and not night.is_flagged


def expected_removals(days: list[Day], keep_days: int, latest: str) -> list[str]:
    """Return the days that go, by the rules as the guide tells them."""
    known = [day for day in sorted(days, key=lambda day: day.day) if day.is_recorded and day.fate != "a link"]
    counted = [day.day for day in known if any(map(is_complete, day.peers.values()))]
    if len(counted) < keep_days:
        return []
    stay = {latest} | {day.day for day in known if is_foreign(day)}
    for peer in PEERS:
        having = [day for day in known if peer in day.peers and not is_damaged(day, peer)]
        stay |= {day.day for day in [day for day in having if is_complete(day.peers[peer])][-1:]}
        stay |= {day.day for day in [day for day in having if day.peers[peer].files][-1:]}
    return [day.day for day in known if day.day < counted[-keep_days] and day.day not in stay]


@pytest.mark.usefixtures("patience")
@examples(30, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.integers(1, 4))
def test_a_prune_removes_what_a_dry_run_lists_and_the_rules_say(data: st.DataObject, keep_days: int) -> None:
    days = data.draw(days_of_pool())
    latest = data.draw(st.sampled_from([day.day for day in days]))
    with quick_directory() as path, pytest.MonkeyPatch.context() as patch:
        patch.setattr(prune_module, "time", SimpleNamespace(time=lambda: noon(TODAY)))
        pool = StagedPool(path, *PEERS)
        fill(pool, days)
        (path / "latest").unlink()
        (path / "latest").symlink_to(latest)
        before, allocated, found = pool.tree(), pool.allocated(), pool.days()
        listed = prune(pool.plan(keep_days), dry_run=True)
        assert (pool.tree(), pool.allocated()) == (before, allocated)
        report = prune(pool.plan(keep_days))
        assert (report.removed, report.kept, report.failed) == (listed.removed, listed.kept, ())
        removed = [day.day for day in report.removed]
        assert removed == expected_removals(days, keep_days, latest)
        assert pool.days() == [day for day in found if day not in removed]
        assert contents(pool.tree()) == {
            name: content for name, content in contents(before).items() if name[:10] not in removed
        }
        assert report.bytes == allocated - pool.allocated()
        assert (path / "latest").exists()
        assert not set(removed) & {day.day for day in report.kept}
        assert (prune(pool.plan(keep_days)).removed, pool.days()) == ((), [d for d in found if d not in removed])


def contents(tree: dict[str, bytes | str | None]) -> dict[str, bytes | str | None]:
    """Return the tree without directories, which may be removed if they are empty."""
    return {name: content for name, content in tree.items() if content is not None}
