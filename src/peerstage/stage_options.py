"""`StageOptions`: what is wanted of a stage."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from peerstage.documented import Documented
from peerstage.paths import MANIFEST_NAMES, validate_path
from peerstage.printable import escape

#: How staged files are verified, for `StageOptions.verify`.
Verification: TypeAlias = Literal["size", "stable", "sha256"]
#: Below this, protocol headers would take most of the bandwidth.
_MIN_BWLIMIT = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOptions(metaclass=Documented):
    """What is wanted of a stage: which files, and how they are written.

    An entry is wanted if its name matches any pattern of `include`, or there is none, and no pattern of `exclude`. The
    others are left out: the report has them in `left_out`, and they are no errors, even if they are not files or cannot
    be read. A stage that leaves out every file succeeds, and publishes nothing.

    Attributes:
        durable: Whether staged files are synced to the disk (fsync) before a stage returns.
        preserve_times: Whether files keep the peer's modification times.
        include: Shell patterns (see `fnmatch.fnmatchcase`), or one, for names without a directory. Case counts.
        exclude: Patterns of the same kind.
        max_size: Files with more bytes are left out, too, except for `checksums`. None means no maximum. (With
            `Limits.file_bytes` they fail.)
        verify: "size": every file has the size that the peer announced. "stable": it also did not change before the end
            of its transfer. Over SFTP and from a local peer, the directory is listed again at the end; a file whose
            size or time has changed is fetched once more, and fails if it changes again. SCP and rcp commands cannot
            list, and verify sizes only. "sha256": its SHA-256 is also compared with the one in `checksums`; a file that
            differs or has none fails, except for the checksum file itself and an empty ``cback.collect`` or
            ``cback.stage``.
        checksums: The name of the checksum file, which the peer collects with the others, in the format of
            sha256sum(1). Required with verify="sha256", and only allowed with it.
        manifest: Whether the target gets a manifest of its files: ``peerstage.sha256``, for `verify` and sha256sum(1),
            and ``peerstage.json``, the report. With or without it, a file of the peer that has one of these names
            fails, except for `checksums`, which may have one if no manifest is written.
        bwlimit: Bytes per second to receive from a remote peer, 1024 or more; None for no limit. The time that it takes
            counts for no limit of `Limits`, except that bytes which do not extend the deadline count for that. An rcp
            command and a local peer cannot be limited.
        link_dest: Absolute path of an earlier staging directory, as a rule that of the day before. A file whose name,
            size and peer's modification time are the same there becomes a hard link instead of a transfer. The times
            are those of its manifest or, with *preserve_times*, of its files; the manifest counts for a file as long as
            the file's own time does not change. A file that would get another owner, mode or time than the earlier one,
            or cannot be linked, is copied from it. If the directory is missing, or tells no times, or other users can
            write to it, or its manifest is another peer's, every file is fetched, and the report's notes say so. None
            links nothing.
        partial_dir: The absolute path of a local directory in which a failed run keeps its large files (8 MiB and more
            have arrived), for the next run to continue; None keeps nothing. It has mode 0700, belongs to this process's
            user, is on the target's file system but not in the target, and is created if only it is missing. Not over
            SCP or rcp.

    Raises:
        ValueError: If a value is invalid.
    """

    durable: bool = True
    preserve_times: bool = False
    include: str | Sequence[str] = ()
    exclude: str | Sequence[str] = ()
    max_size: int | None = None
    verify: Verification = "stable"
    checksums: str | None = None
    manifest: bool = False
    bwlimit: int | None = None
    link_dest: str | None = None
    partial_dir: str | None = None

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if self.verify == "sha256":
            _require(self.checksums is not None, "checksums", "the name of a file if verify is 'sha256'", None)
        else:
            _require(self.checksums is None, "verify", "'sha256' if checksums names a file", self.verify)
        if self.manifest:
            _require(self.checksums not in MANIFEST_NAMES, "manifest", "False if checksums is one of its names", True)
        if self.checksums is not None:
            is_included = not self.include or _matches(self.checksums, self.include)
            _require(is_included, "include", "patterns of which one matches the checksum file", self.include)
            is_excluded = _matches(self.checksums, self.exclude)
            _require(not is_excluded, "exclude", "patterns that do not match the checksum file", self.exclude)

    def to_json(self) -> str:
        """Return the options as one JSON object."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> StageOptions:
        """Return the options that `to_json` wrote; missing keys have their defaults.

        Raises:
            ValueError: If the text is not such an object, has an invalid value, or has an unknown key: an option that
                is ignored would stage something else than what was asked for.
        """
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise ValueError(f"Not stage options: {escape(str(exc))}") from None
        if not isinstance(raw, dict):
            raise ValueError(f"Not stage options, but a JSON {type(raw).__name__}.")
        unknown = raw.keys() - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"StageOptions has no option {min(unknown)!r}.")
        return cls(**raw)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _check_flag(name: str, value: Any) -> bool:
    _require(isinstance(value, bool), name, "True or False", value)
    return bool(value)


def _check_patterns(name: str, value: Any) -> tuple[str, ...]:
    patterns = (value,) if isinstance(value, str) else value
    is_valid = isinstance(patterns, (tuple, list)) and all(map(_is_pattern, patterns))
    _require(is_valid, name, "patterns for names, which have no slash", value)
    return tuple(patterns)


def _is_pattern(value: Any) -> bool:
    return isinstance(value, str) and value != "" and "/" not in value and "\0" not in value


def _check_size(name: str, value: Any) -> int | None:
    return _check_at_least(1, "a number of bytes above 0", name, value)


def _check_verification(name: str, value: Any) -> Any:
    _require(value in get_args(Verification), name, f"one of {get_args(Verification)}", value)
    return value


def _check_plain_name(name: str, value: Any) -> str | None:
    if value is None:
        return None
    encoded = b""
    with contextlib.suppress(UnicodeError):
        encoded = os.fsencode(value) if isinstance(value, str) else b""
    is_plain = encoded not in (b"", b".", b"..") and b"/" not in encoded and b"\0" not in encoded
    _require(is_plain, name, "the name of a file, without a directory", value)
    return str(value)


def _check_bwlimit(name: str, value: Any) -> int | None:
    expected = f"a number of bytes per second, {_MIN_BWLIMIT} or more"
    return _check_at_least(_MIN_BWLIMIT, expected, name, value)


def _check_at_least(minimum: int, expected: str, name: str, value: Any) -> int | None:
    is_valid = isinstance(value, int) and not isinstance(value, bool) and value >= minimum
    _require(value is None or is_valid, name, expected, value)
    return None if value is None else int(value)


def _check_directory(name: str, value: Any) -> str | None:
    if value is None:
        return None
    path = validate_path(value, f"StageOptions: {name}")
    _require(os.path.isabs(path), name, "an absolute path", path)
    return path


def _require(is_valid: bool, name: str, expected: str, value: object) -> None:
    if not is_valid:
        raise ValueError(f"StageOptions: {name} must be {expected}, not {value!r}.")


#: For each option, a function that takes its name and value, and returns the normalized value or raises `ValueError`.
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "durable": _check_flag,
    "preserve_times": _check_flag,
    "include": _check_patterns,
    "exclude": _check_patterns,
    "max_size": _check_size,
    "verify": _check_verification,
    "checksums": _check_plain_name,
    "manifest": _check_flag,
    "bwlimit": _check_bwlimit,
    "link_dest": _check_directory,
    "partial_dir": _check_directory,
}
