"""PATTERNS of ssh_config(5): ``*`` and ``?`` only, comma-separated lists, and negation."""

from __future__ import annotations

from collections.abc import Iterable


def match_pattern(text: str, pattern: str) -> bool:
    """Return whether the whole of *text* matches *pattern*, in time proportional to the product of their lengths."""
    at = pattern_at = 0
    star = -1
    star_end = 0
    while at < len(text):
        wanted = pattern[pattern_at] if pattern_at < len(pattern) else ""
        if wanted == "*":
            star, star_end = pattern_at, at
            pattern_at += 1
        elif wanted and wanted in ("?", text[at]):
            at += 1
            pattern_at += 1
        elif star >= 0:  # let the last star match one more character
            star_end += 1
            at, pattern_at = star_end, star + 1
        else:
            return False
    return not pattern[pattern_at:].strip("*")


def match_pattern_list(text: str, patterns: str) -> bool:
    """Return whether *text* matches comma-separated *patterns*. See `match_patterns`."""
    return match_patterns(text, patterns.split(","))


def match_patterns(text: str, patterns: Iterable[str]) -> bool:
    """Return whether *text* matches one of *patterns*, and none of the negated ones."""
    matched = False
    for pattern in patterns:
        if pattern.startswith("!"):
            if match_pattern(text, pattern[1:]):
                return False
        elif match_pattern(text, pattern):
            matched = True
    return matched


def match_hostname(host: str, patterns: str) -> bool:
    """Return whether *host* matches a list of patterns, ignoring case."""
    return match_pattern_list(host.lower(), patterns.lower())
