"""The guide: pages about peerstage, as Markdown files beside this module.

``peerstage guide`` prints them; in the repository they are linked from the README.
"""

from __future__ import annotations

import difflib
import re
from importlib import resources

from peerstage.guide.plain import render_plain
from peerstage.reasons import Reason

__all__ = ["INDEX", "list_topics", "read_page", "render_plain", "topic_for"]

#: The page that lists the others.
INDEX = "index"
_ENTRY = re.compile(r"^- \[(?P<topic>[a-z0-9-]+)\]\((?P=topic)\.md\): (?P<summary>.+)$", re.MULTILINE)

# fmt: off
#: Reasons whose errors need more explanation than a line, by the page that gives it.
_REASONS_BY_TOPIC: dict[str, tuple[Reason, ...]] = {
    "host-keys": (
        Reason.HOST_KEY_UNKNOWN, Reason.HOST_KEY_CHANGED, Reason.HOST_KEY_REVOKED,
        Reason.HOST_KEY_MISMATCHED, Reason.HOST_KEY_NOT_PINNED, Reason.HOST_KEY_NOT_LISTED,
        Reason.HOST_KEY_TOO_SMALL, Reason.HOST_KEY_NOT_SAVED, Reason.HOST_CERTIFICATE_INVALID,
        Reason.HOST_CERTIFICATE_UNKNOWN,
    ),
    "ssh-config": (
        Reason.UNKNOWN_KEYWORD, Reason.UNSUPPORTED_KEYWORD, Reason.NO_COMMON_ALGORITHM,
        Reason.STRICT_KEX_MISSING, Reason.FORWARDING_REFUSED, Reason.LOGIN_REFUSED,
        Reason.TOO_MANY_LOGIN_ATTEMPTS, Reason.NO_CREDENTIALS, Reason.KEY_ON_TOKEN,
        Reason.PASSPHRASE_MISSING,
    ),
    "transports": (
        Reason.NO_SFTP, Reason.NO_SCP, Reason.COMMAND_REFUSED, Reason.COMMAND_TOO_LONG,
        Reason.RCP_COMMAND_FAILED, Reason.INVALID_NAME,
    ),
    "local-user": (
        Reason.UNKNOWN_LOCAL_USER, Reason.NOT_ROOT, Reason.PRIVILEGES_NOT_DROPPED, Reason.ELEVATION_FAILED,
    ),
    "pruning": (Reason.DAY_IN_FUTURE,),
    "troubleshooting": (
        Reason.STALLED, Reason.TOO_SLOW, Reason.DEADLINE_PASSED, Reason.LIMIT_EXCEEDED,
        Reason.TEXT_BEFORE_PROTOCOL, Reason.NOTHING_TO_STAGE, Reason.INCOMPLETE_STAGE,
        Reason.TARGET_INTERFERED, Reason.CHILD_ENDED, Reason.CHILD_SILENT,
    ),
}
# fmt: on
_TOPICS = {reason: topic for topic, reasons in _REASONS_BY_TOPIC.items() for reason in reasons}


def topic_for(reason: Reason | None) -> str | None:
    """Return the topic that explains *reason* at length; None if the error message says enough."""
    return None if reason is None else _TOPICS.get(reason)


def list_topics() -> dict[str, str]:
    """Return the topics in the order of the index, each with a one-line summary."""
    return {entry["topic"]: entry["summary"] for entry in _ENTRY.finditer(_read(INDEX))}


def read_page(topic: str | None = None) -> str:
    """Return the page about *topic*, or the index, as Markdown.

    Raises:
        ValueError: If there is no such topic; the message names one that is spelled like it.
    """
    topics = [*list_topics(), INDEX]
    if topic is not None and topic not in topics:
        nearest = difflib.get_close_matches(topic.lower(), topics, n=1)
        hint = f"the nearest is {nearest[0]!r}" if nearest else "`peerstage guide` lists them"
        raise ValueError(f"The guide has no topic {topic!r}; {hint}.")
    return _read(topic or INDEX)


def _read(topic: str) -> str:
    return resources.files(__name__).joinpath(f"{topic}.md").read_text(encoding="utf-8")
