"""``Limits(in_flight_bytes=...)``: how much a server may send ahead, whatever it wants."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from peerstage import Limits
from support.window_observer import stage_under_observation

KIB, MIB = 1 << 10, 1 << 20


@pytest.mark.parametrize("in_flight", [64 * KIB, MIB])
@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_a_server_may_send_the_limit_and_a_sixth_of_it_ahead(
    collect: Path, target: Path, transport: str, in_flight: int
) -> None:
    (collect / "file").write_bytes(os.urandom(4 * MIB))
    limits = Limits(in_flight_bytes=in_flight)
    windows, _ = stage_under_observation(collect, target, transport=transport, limits=limits)
    assert in_flight <= max(windows) <= in_flight * 7 / 6


@pytest.mark.usefixtures("fresh_interpreter")
def test_the_limit_of_an_isolated_child_is_the_same(collect: Path, target: Path) -> None:
    (collect / "file").write_bytes(os.urandom(4 * MIB))
    limits = Limits(in_flight_bytes=128 * KIB)
    windows, _ = stage_under_observation(collect, target, limits=limits, isolated=True)
    assert 128 * KIB <= max(windows) <= 128 * KIB * 7 / 6


def test_the_default_is_24_mib(collect: Path, target: Path) -> None:
    (collect / "file").write_bytes(b"x")
    windows, _ = stage_under_observation(collect, target)
    assert max(windows) == 28 * MIB


@pytest.mark.parametrize("value", [64 * KIB - 1, 0, -1, 1e6, True, "1M", None])
def test_a_limit_below_64_kib_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="in_flight_bytes must be an integer from 65536 on"):
        Limits(in_flight_bytes=value)  # type: ignore[arg-type]
