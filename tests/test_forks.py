"""Resources of a parent process in a forked child."""

from __future__ import annotations

import pytest

from peerstage.errors import StageError
from peerstage.forks import OwnerProcess, release_after_fork
from peerstage.reasons import Reason
from support.children import run_in_fork


class Resource:
    """Counts how often it is released."""

    def __init__(self, *, fails: bool = False) -> None:
        self.released = 0
        self._fails = fails
        release_after_fork(self)

    def release_in_child(self) -> None:
        self.released += 1
        if self._fails:
            raise OSError("bad file descriptor")


def test_only_the_process_that_created_a_resource_is_its_owner() -> None:
    owner = OwnerProcess()
    owner.require_current()

    def in_child() -> None:
        assert not owner.is_current()
        with pytest.raises(StageError) as caught:
            owner.require_current()
        assert caught.value.reason is Reason.FORKED

    run_in_fork(in_child)
    assert owner.is_current()


def test_a_forked_child_releases_every_resource_once_even_if_one_fails() -> None:
    resources = [Resource(fails=True), Resource(), Resource(fails=True), Resource()]

    def in_child() -> None:
        assert [resource.released for resource in resources] == [1, 1, 1, 1]
        run_in_fork(lambda: None)
        assert [resource.released for resource in resources] == [1, 1, 1, 1]

    run_in_fork(in_child)
    assert [resource.released for resource in resources] == [0, 0, 0, 0], "the parent keeps them"
