"""Patterns of ssh_config(5): ``*`` and ``?`` and nothing else, lists of them with commas, and negation."""

from __future__ import annotations


def match_pattern(text: str, pattern: str) -> bool:
    """Whether *text* as a whole matches *pattern*; takes at most the product of their lengths."""
    at = rest = 0
    star = -1
    mark = 0
    while at < len(text):
        wanted = pattern[rest] if rest < len(pattern) else ""
        if wanted == "*":
            star, mark = rest, at
            rest += 1
        elif wanted and wanted in ("?", text[at]):
            at += 1
            rest += 1
        elif star >= 0:  # let the last star take one more
            mark += 1
            at, rest = mark, star + 1
        else:
            return False
    return not pattern[rest:].strip("*")


def match_pattern_list(text: str, patterns: str) -> bool:
    """Whether *text* matches one of a list of patterns, with commas between, and none of the negated ones."""
    matched = False
    for pattern in patterns.split(","):
        if pattern.startswith("!"):
            if match_pattern(text, pattern[1:]):
                return False
        elif match_pattern(text, pattern):
            matched = True
    return matched


def match_hostname(host: str, patterns: str) -> bool:
    """Whether *host* matches a list of patterns, whatever the case."""
    return match_pattern_list(host.lower(), patterns.lower())
