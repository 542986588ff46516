"""What diffac tells people: text that a terminal or a page cannot take for anything else."""

from __future__ import annotations

import re
import shlex
import sys
import unicodedata

LONGEST = 4_000
"""Characters of a message that are shown."""
LONGEST_QUOTED = 200
"""... and of what a file says."""
BREAKS = re.compile(r"[\t\n\v\f\r\x85\u2028\u2029]+")


def printable(text: object, longest: int = LONGEST) -> str:
    """One line without anything that is obeyed instead of shown, for whatever came out of a file.

    Line breaks and tabs become spaces; control characters, those that turn the direction of writing and other invisible
    ones, and bytes that are no text become escapes such as `\\x1b`. Of a longer text the middle is left out.
    """
    line = shorten(BREAKS.sub(" ", str(text)), longest)
    return line if line.isprintable() else "".join(map(_shown, line))


def _shown(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":  # other spaces than the usual one
        return character
    return character.encode("unicode_escape").decode()


def shorten(text: str, longest: int) -> str:
    """The text, or where it is longer its beginning and its end."""
    if len(text) <= longest:
        return text
    tail = (longest - 1) // 3
    return f"{text[: longest - 1 - tail]}…{text[len(text) - tail :]}"


def quoted(value: object) -> str:
    """What a file says, in quotation marks, so that nobody takes it for words of ours."""
    return printable(repr(str(value)), LONGEST_QUOTED)


def say(*lines: object) -> None:
    """Results, on standard output."""
    print(*map(printable, lines), sep="\n", flush=True)


def note(text: object) -> None:
    """What a person should know beside them, on standard error."""
    print(f"note: {printable(text)}", file=sys.stderr, flush=True)


def command(*words: object) -> str:
    """A command line that a person may copy. Its words are what they typed or we made, never out of a file."""
    return printable(shlex.join(map(str, words)))
