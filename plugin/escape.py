"""Escape control characters, bidi marks and newlines in others' strings.

Names of containers, networks, interfaces and the like are chosen by others, who may want a line to
look like another one, or a terminal to obey.
"""

from __future__ import annotations

import re

# Characters without a shape of their own that `str.isprintable` lets through: the rest of Unicode's
# Default_Ignorable_Code_Point (DerivedCoreProperties.txt), and a blank of Braille.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]"
)


def escape(text: str) -> str:
    r"""Return the text with everything visible: `\n`, `\x1b`, `\u202e` for what is not.

    Control characters, marks of direction and of width, separators of lines, blanks other than a
    space, and halves of surrogate pairs, which stand for bytes that are no UTF-8. A backslash stays
    one: the result is to be read, and not to be read back.
    """
    if text.isprintable() and not _INVISIBLE.search(text):
        return text
    return "".join(each if _is_visible(each) else _name(each) for each in text)


def escape_lines(text: str) -> str:
    """Return a text of several lines, escaped, each line after the first indented.

    So none that others have put into it can pass for one that begins something.
    """
    first, *more = text.split("\n")
    return "\n".join([escape(first), *(f"    {escape(line)}" for line in more)])


def _is_visible(character: str) -> bool:
    return character.isprintable() and not _INVISIBLE.match(character)


def _name(character: str) -> str:
    return character.encode("unicode_escape").decode()
