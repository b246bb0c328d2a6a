"""Results of ``doctor``."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from peerstage.cli.arguments import PeerSpec
from peerstage.cli.results import Line, Result, Table, peer_to_json
from peerstage.exit_codes import CODES, ExitCode
from peerstage.guide import topic_for
from peerstage.isolation.protocol.values import child_violation, parse_choice
from peerstage.printable import escape
from peerstage.reasons import Reason

#: Columns before the text of a step.
_INDENT = 22
_STATE_STYLES = {"ok": "green", "tried": "yellow", "failed": "bold red", "skipped": "dim"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult(Result):
    """The result of one step of ``doctor``.

    Attributes:
        step: The step, as `peerstage.cli.checks` names it.
        state: "ok", "tried" (an attempt failed, and another follows), "failed" or "skipped".
        seen: What was observed.
        cause: The likely cause of a failure.
        remedy: What to do about it: a command, or a line and the file that it belongs to.
        reason: The reason of a failure, or of a failed attempt.
    """

    step: str
    state: str
    seen: str = ""
    cause: str = ""
    remedy: str = ""
    reason: Reason | None = None

    @property
    def guide(self) -> str:
        """The command that prints the page about the reason of a failure; "" if the remedy says enough."""
        topic = topic_for(self.reason) if self.state == "failed" else None
        return "" if topic is None else f"peerstage guide {topic}"

    def to_message(self) -> dict[str, Any]:
        """See `peerstage.cli.user_process.Message`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_message(cls, message: Any) -> StepResult:
        """See `peerstage.cli.user_process.Message`."""
        try:
            reason = None if message["reason"] is None else Reason(message["reason"])
            state = parse_choice(message["state"], "state", _STATE_STYLES)
            texts = {name: str(message[name]) for name in ("step", "seen", "cause", "remedy")}
        except (KeyError, TypeError, ValueError) as exc:
            raise child_violation("The child process sent an invalid step.") from exc
        if state == "failed" and reason is None:  # the exit code would be that of success
            raise child_violation("The child process sent a failed step without a reason.")
        return cls(**texts, state=state, reason=reason)

    def to_json(self) -> list[dict[str, Any]]:
        return []  # `DoctorResult` has all steps in one object

    def to_lines(self) -> Iterator[Line]:
        return self._lines(lambda text: text)

    def to_terminal(self) -> Iterator[Line | Table]:
        """Indent continuation lines, except for the remedy, whose commands must stay whole to be copied."""
        width = max(20, shutil.get_terminal_size().columns - _INDENT)
        return self._lines(lambda text: f"\n{'':{_INDENT}}".join(textwrap.wrap(text, width, break_on_hyphens=False)))

    def _lines(self, wrap: Callable[[str], str]) -> Iterator[Line]:
        # The texts may be from a child process that is not trusted, and `seen` quotes the peer.
        step, seen, cause, remedy = map(escape, (self.step, self.seen, self.cause, self.remedy))
        yield (f"{self.state:8}", _STATE_STYLES[self.state]), f"{step:14}", wrap(seen)
        for label, text in (("cause", wrap(cause)), ("remedy", remedy), ("see", self.guide)):
            if text:
                yield " " * 8, (f"{label + ':':14}", "bold"), text


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorResult(Result):
    """The result of ``doctor``, after all steps."""

    peer: PeerSpec
    steps: list[StepResult]

    @property
    def exit(self) -> ExitCode:
        """The highest exit code of a failed step; DONE if none failed."""
        failed = (step.reason for step in self.steps if step.state == "failed")
        return max((CODES[reason] for reason in failed if reason is not None), default=ExitCode.DONE)

    def to_json(self) -> list[dict[str, Any]]:
        failed = next((step for step in self.steps if step.state == "failed"), None)
        return [
            {
                "verb": "doctor",
                **peer_to_json(self.peer),
                "steps": [dataclasses.asdict(step) for step in self.steps],
                "failed": None if failed is None else failed.step,
                "reason": None if failed is None else failed.reason,
                "exit": self.exit,
            }
        ]

    def to_lines(self) -> Iterator[Line]:
        failed = ", ".join(escape(step.step) for step in self.steps if step.state == "failed")
        verdict = (f"failed: {failed}", "bold red") if failed else ("all is well", "bold green")
        yield f"{self.peer.location}: ", verdict
