"""Write a new plan: TOML with a comment for each key, those that are not set included."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peerstage.fleet.plan import LOCAL
from peerstage.fleet.plan_file.toml_writer import format_entry, format_key, format_table
from peerstage.printable import escape
from peerstage.system_errors import target_errors
from peerstage.target.file_descriptors import CREATE_NEW

#: What a new plan says of peers for which nothing else is given.
COMMON_KEYS = {"user": "backup", "collect_dir": "/var/backup/collect"}

#: Keys at the top of a plan: each with its value, or an example, and its meaning.
_POOL: tuple[tuple[str, Any, str], ...] = (
    ("staging", "/srv/staging", "files go to %Y/%m/%d/PEER in this directory"),
    ("parallel", 4, "peers at a time"),
    ("bwlimit", "20M", "bytes per second, all peers together"),
    ("until", "06:00", "ask peers that are not ready again until then"),
    ("min_free", "50G", "bytes that must remain free"),
    ("keep_days", 14, "days to keep; runs and `peerstage prune` remove older ones"),
    ("complete_only", True, "no cback.stage for the day unless every peer was staged"),
    ("owner", "root:root", "of all files and directories"),
    ("mode", "0750", "of new directories"),
    ("starting_day", "monday", "the first day of the week, for ignore_failures"),
)
_HOOKS: tuple[tuple[str, Any, str], ...] = (
    ("before", ("/usr/local/bin/mount-staging", "--rw"), "if it fails, the run does not start"),
    ("after", ("/usr/local/bin/unmount-staging",), "at the end, unless `before` failed"),
    ("after_peer", ("/usr/local/bin/log-peer",), "after each peer; PEERSTAGE_* say which"),
)
_DEFAULTS: tuple[tuple[str, Any, str], ...] = (
    ("user", COMMON_KEYS["user"], "the user to log in as"),
    ("collect_dir", COMMON_KEYS["collect_dir"], "what the peers collect, with cback.collect at the end"),
    ("local_user", "backup", "root only: connect as this user, with its keys and ssh_config"),
    ("identity", "~/.ssh/id_ed25519", "private key; without it, as ssh's configuration says"),
    ("known_hosts", "~/.ssh/known_hosts", "trusted host keys; `peerstage trust` adds them"),
    ("connect_retries", 3, "for peers that may still be booting"),
    ("exclude", ("*.tmp",), "names that are not staged"),
    ("link_dest", True, "a file that is unchanged since the last complete day becomes a hard link"),
    ("indicator_max_age", "20h", "an older cback.collect is stale, not ready"),
    ("overdue_after", "30h", "without a complete stage"),
    ("min_bytes", "1M", "less is flagged"),
)
_GROUP: tuple[tuple[str, Any, str], ...] = (
    ("jump", "bastion.example.com", "jump host"),
    ("ignore_failures", "all", "reported, but not in the exit status"),
)
#: What is set in every new plan.
_REQUIRED = {"staging", "parallel"}
#: Keys that a local peer ignores, so that a default for them concerns remote peers alone.
_REMOTE = {"host", "port", "user", "local_user", "identity", "known_hosts", "jump", "rcp_command"}


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPlan:
    """The keys of a new plan, as the guide's page on plans names them.

    Attributes:
        peers: The keys of each peer, by its name.
        settings: Keys at the top of the plan.
        notes: What its reader has to know, as sentences, which may hold any text.
    """

    peers: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def to_toml(self) -> str:
        """Return the plan with comments. Every line that is commented out is valid, too.

        Raises:
            ValueError: If a value cannot be written in TOML, which is UTF-8.
        """
        defaults, peers = _extract_defaults(self.peers)
        lines = [
            "# The plan of peerstage: which peers `peerstage run` stages every night, and how.",
            "# `peerstage guide plan` explains every key.",
            *(f"# Note: {escape(note)}" for note in self.notes),
            "",
            *_format_keys(_POOL, self.settings),
            "",
            "# [hooks]  # commands: the program and its arguments, without a shell",
            *_format_keys(_HOOKS, {}),
            "",
            "[defaults]  # for every peer, unless its group or the peer itself has another value",
            *_format_keys(_DEFAULTS, defaults),
            "",
            '# [groups.office]  # for the peers with group = "office"',
            *_format_keys(_GROUP, {}),
            "",
            "[peers]  # NAME = { keys }; the name is the host unless there is a key host",
        ]
        width = min(24, max(len(format_key(name)) for name in peers))
        lines += [f"{format_key(name):{width}} = {format_table(keys)}" for name, keys in peers.items()]
        return "\n".join(lines) + "\n"


def write_new_file(path: str, text: str) -> None:
    """Write *text* to the new file *path*, with mode 0600, and create its directory if only that is missing.

    Raises:
        ValueError: If the file exists.
        TargetError: If it cannot be written; then it does not exist.
    """
    with target_errors("The plan cannot be written", path):
        try:
            directory = os.path.dirname(path)
            if directory and not os.path.isdir(directory):
                os.mkdir(directory, 0o755)
            fd = os.open(path, CREATE_NEW, 0o600)
        except FileExistsError:
            raise ValueError(
                f"{escape(path)} exists, and is not overwritten. Move it, or give another --output."
            ) from None
        try:
            with open(fd, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            os.unlink(path)
            raise


def _format_keys(known: Iterable[tuple[str, Any, str]], values: Mapping[str, Any]) -> list[str]:
    """Return a line for each key: commented out if *values* does not have it, unless it is required."""
    lines = []
    for key, example, comment in known:
        is_set = key in values or key in _REQUIRED
        entry = format_entry(key, values.get(key, example))
        lines.append(f"{entry if is_set else f'# {entry}':38}  # {comment}")
    shown = {key for key, _, _ in known}
    return lines + [format_entry(key, value) for key, value in values.items() if key not in shown]


def _extract_defaults(peers: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the most common value of each key that all peers have, and the peers without these values."""
    rest = {name: dict(keys) for name, keys in peers.items()}
    remote = [keys for keys in rest.values() if keys.get("transport") != LOCAL]
    defaults: dict[str, Any] = {}
    for key in dict.fromkeys(key for keys in rest.values() for key in keys):
        concerned = remote if key in _REMOTE else list(rest.values())
        if key in ("group", "host", "transport") or not all(key in keys for keys in concerned):
            continue
        values = [keys[key] for keys in concerned]
        ((text, _),) = Counter(map(repr, values)).most_common(1)
        defaults[key] = next(value for value in values if repr(value) == text)
        for keys in concerned:
            if keys[key] == defaults[key]:
                del keys[key]
    return defaults, rest
