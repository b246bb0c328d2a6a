"""The problems of a plan on standard error."""

from __future__ import annotations

import pytest

from peerstage.cli.output import print_error
from peerstage.errors import PlanError
from peerstage.exit_codes import ExitCode, code_of
from peerstage.fleet.plan_file import parse_plan


def test_every_problem_has_a_line_with_file_and_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PlanError) as caught:
        parse_plan(b"paralel = 4\n[peers]\ndb1 = { prot = 22 }\n", "/etc/peerstage/plan\n.toml")
    print_error(caught.value)
    assert capsys.readouterr().err.splitlines() == [
        "peerstage: /etc/peerstage/plan\\n.toml: peers.db1.prot: unknown, did you mean port?",
        "peerstage: /etc/peerstage/plan\\n.toml: paralel: unknown, did you mean parallel?",
        "peerstage: /etc/peerstage/plan\\n.toml: staging: is missing",
        "peerstage: /etc/peerstage/plan\\n.toml: peers.db1.collect_dir: is missing; set it here or in [defaults]",
        "peerstage: /etc/peerstage/plan\\n.toml: peers.db1.user: is missing; set it here or in [defaults]",
        "peerstage: See: peerstage guide plan",
    ]
    assert code_of(caught.value) is ExitCode.USAGE
