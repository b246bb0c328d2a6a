"""What each peer of a run may use of the bandwidth and of the memory."""

from __future__ import annotations

import pytest

from peerstage.fleet.plan import FleetPlan, PeerJob
from peerstage.fleet.shares import Shares, share_out
from peerstage.records import KIB, MIB, Limits


def share(
    parallel: int,
    bwlimit: int | None = None,
    *,
    peers: int = 300,
    min_rate: int = 16 * KIB,
    open_files: int | None = None,
) -> Shares:
    """Return the shares of a run of *peers* peers."""
    slow, fast = Limits(min_rate=1), Limits(min_rate=min_rate)
    jobs = tuple(
        PeerJob(name=f"p{number}", collect_dir="/c", user="u", limits=fast if number == 0 else slow)
        for number in range(peers)
    )
    return share_out(
        FleetPlan(staging="/s", peers=jobs, parallel=parallel, bwlimit=bwlimit), jobs, open_files=open_files
    )


def test_without_a_cap_as_many_peers_are_staged_as_the_plan_says() -> None:
    assert share(8)[:2] == (8, None)


def test_a_cap_is_divided_among_the_peers() -> None:
    assert share(4, 400 * KIB)[:2] == (4, 100 * KIB)


@pytest.mark.parametrize(("bwlimit", "parallel"), [(128, 4), (127, 3), (64, 2), (63, 1), (1, 1)])
def test_fewer_peers_are_staged_if_a_share_would_be_less_than_twice_the_minimum_rate(
    bwlimit: int, parallel: int
) -> None:
    assert share(4, bwlimit * KIB).parallel == parallel


def test_the_strictest_minimum_rate_counts() -> None:
    assert share(4, 128 * KIB, min_rate=32 * KIB).parallel == 2


def test_few_peers_share_everything() -> None:
    assert share(8, 1000 * KIB, peers=2) == Shares(2, 500 * KIB, 32 * MIB)


@pytest.mark.parametrize("parallel", [1, 4, 32, 256])
def test_no_more_than_64_mib_are_in_flight(parallel: int) -> None:
    shares = share(parallel)
    assert shares.parallel == parallel
    assert shares.in_flight * parallel <= 64 * MIB
    assert shares.in_flight >= 64 * KIB


@pytest.mark.parametrize(("open_files", "parallel"), [(None, 256), (20_000, 256), (1024, 32), (256, 6), (10, 1)])
def test_no_more_peers_are_staged_than_the_process_may_open_files_for(open_files: int | None, parallel: int) -> None:
    assert share(256, open_files=open_files).parallel == parallel
