"""Which days are old, and which of them a peer needs: what `test_prune` does not show on the disk."""

from __future__ import annotations

from collections.abc import Callable

from peerstage.fleet.prune.retention import Content, Needed, PeerNight, find_needed, nights_of, oldest_kept
from peerstage.fleet.results import Flag, FleetReport, PeerResult, StageSummary, Verdict

COMPLETE, PARTIAL, NOTHING = PeerNight(True, 2), PeerNight(False, 2), PeerNight(False, 0)


def days_with(**days: dict[str, PeerNight]) -> dict[str, dict[str, PeerNight]]:
    """Return nights by day: ``d05`` is 2026/11/05."""
    return {f"2026/11/{name[1:]}": peers for name, peers in days.items()}


def holding(**changed: Content) -> Callable[[str, str], Content]:
    """Return what a disk holds on which each peer has two files, but for those of *changed*: ``d05_db1``."""

    def look(day: str, peer: str) -> Content:
        return changed.get(f"d{day[-2:]}_{peer}", Content(2, 20, True))

    return look


def report_of(*results: PeerResult) -> FleetReport:
    return FleetReport(run="r", plan=None, staging="/s", target="/s/d", day="d", started=0.0, results=results)


def result_of(verdict: Verdict, files: int = 0, *flags: Flag) -> PeerResult:
    report = StageSummary(transport="sftp", target="/t", files=files) if files else None
    return PeerResult(peer="db1", verdict=verdict, flags=flags, report=report)


# Which days are old


def test_no_day_is_old_while_there_are_fewer_than_keep_days() -> None:
    found = days_with(d01={"a": COMPLETE}, d02={"a": COMPLETE})
    assert oldest_kept(found, found, 2) == "2026/11/01"
    assert oldest_kept(found, found, 3) is None
    assert oldest_kept([], {}, 1) is None


def test_one_complete_peer_makes_a_day_count() -> None:
    found = days_with(d01={"a": COMPLETE}, d02={"a": NOTHING, "b": COMPLETE})
    assert oldest_kept(found, found, 1) == "2026/11/02"


# What the records of a day say


def test_a_night_is_complete_if_any_run_of_the_day_staged_the_peer() -> None:
    again = report_of(result_of(Verdict.FAILED))
    assert nights_of([again, report_of(result_of(Verdict.STAGED, 3))]) == {"d": {"db1": PeerNight(True, 3)}}
    assert nights_of([report_of(result_of(Verdict.STAGED, 3)), again]) == {"d": {"db1": PeerNight(True, 3)}}
    assert nights_of([report_of(result_of(Verdict.INCOMPLETE, 3)), again]) == {"d": {"db1": PeerNight(False, 3)}}
    assert nights_of([report_of(result_of(Verdict.NOT_STARTED))]) == {"d": {"db1": NOTHING}}
    assert nights_of([report_of()]) == {"d": {}}
    assert nights_of([]) == {}


# Which old days a peer needs


def test_the_newest_files_are_needed_even_if_they_are_not_a_complete_night() -> None:
    found = days_with(d01={"a": COMPLETE}, d02={"a": PARTIAL}, d03={"a": PARTIAL}, d04={"a": NOTHING})
    old = ["2026/11/01", "2026/11/02", "2026/11/03"]
    expected = {"2026/11/01": Needed(["a"], []), "2026/11/03": Needed([], ["a"])}
    assert find_needed(found, found, old, holding(d04_a=Content(0, 0, True))) == expected


def test_a_night_with_fewer_files_than_its_record_tells_of_replaces_no_older_one() -> None:
    found = days_with(d01={"a": COMPLETE}, d02={"a": COMPLETE})
    expected = {"2026/11/01": Needed(["a"], [])}
    assert find_needed(found, found, ["2026/11/01"], holding()) == {}
    assert find_needed(found, found, ["2026/11/01"], holding(d02_a=Content(1, 10, True))) == expected


def test_a_complete_night_without_files_counts_for_a_peer_that_may_be_empty() -> None:
    found = days_with(d01={"a": COMPLETE}, d02={"a": PeerNight(True, 0)})
    expected = {"2026/11/01": Needed([], ["a"])}
    assert find_needed(found, found, ["2026/11/01"], holding(d02_a=Content(0, 0, True))) == expected


def test_empty_files_such_as_an_indicator_are_not_newer_files() -> None:
    found = days_with(d01={"a": PARTIAL}, d02={"a": PARTIAL})
    expected = {"2026/11/01": Needed([], ["a"])}
    assert find_needed(found, found, ["2026/11/01"], holding(d02_a=Content(1, 0, False))) == expected


def test_each_peer_is_judged_by_its_own_nights() -> None:
    found = days_with(d01={"a": COMPLETE, "b": COMPLETE}, d02={"a": COMPLETE, "c": COMPLETE}, d03={"c": COMPLETE})
    expected = {"2026/11/01": Needed(["b"], []), "2026/11/02": Needed(["a"], [])}
    assert find_needed(found, found, ["2026/11/01", "2026/11/02"], holding()) == expected


def test_directories_are_only_looked_at_where_that_matters() -> None:
    found = days_with(d01={"a": COMPLETE}, d02={"a": COMPLETE}, d03={"a": COMPLETE, "b": COMPLETE}, d04={"b": NOTHING})
    looked = []

    def look(day: str, peer: str) -> Content:
        looked.append((day[-2:], peer))
        return Content(2, 20, True)

    find_needed(found, found, ["2026/11/01"], look)
    assert looked == [("03", "a")]


def test_files_count_even_if_the_records_tell_of_none() -> None:
    """The run that staged them may have left a record that is damaged now."""
    found = days_with(d01={"a": NOTHING}, d02={"a": NOTHING})
    expected = {"2026/11/01": Needed([], ["a"])}
    assert find_needed(found, found, ["2026/11/01"], holding(d02_a=Content(0, 0, True))) == expected
