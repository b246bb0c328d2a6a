"""Split lines of ssh_config(5) into words, as OpenSSH does (misc.c: argv_split, strdelim)."""

from __future__ import annotations

import re


def split_words(text: str) -> list[str]:
    """Return the words of a value: quotes of both kinds group, a backslash escapes quotes, itself and a space.

    A word that begins with ``#`` ends the line.

    Raises:
        ValueError: A quote is not closed.
    """
    words: list[str] = []
    at = 0
    while at < len(text):
        if text[at] in " \t":
            at += 1
            continue
        if text[at] == "#":
            break
        word, at = _one_word(text, at)
        words.append(word)
    return words


def _one_word(text: str, at: int) -> tuple[str, int]:
    word, quote = "", ""
    while at < len(text):
        char = text[at]
        following = text[at + 1 : at + 2]
        if char == "\\" and following and (following in "'\"\\" or (not quote and following == " ")):
            at += 1
            word += text[at]
        elif not quote and char in " \t":
            break
        elif not quote and char in "'\"":
            quote = char
        elif quote and char == quote:
            quote = ""
        else:
            word += char
        at += 1
    if quote:
        raise ValueError("a quote is not closed")
    return word, at


def next_word(text: str) -> tuple[str, str]:
    """Return the first word of a Match line and the rest: double quotes group, one ``=`` may stand for a space."""
    text = text.lstrip(" \t\r\n")
    if text.startswith('"'):
        word, quote, rest = text[1:].partition('"')
        return (word, rest.lstrip(" \t\r\n")) if quote else ("", "")
    match = re.match(r"([^ \t\r\n\"=]*)([ \t\r\n]*=?[ \t\r\n]*)(.*)", text, re.DOTALL)
    return (match.group(1), match.group(3)) if match else ("", "")
