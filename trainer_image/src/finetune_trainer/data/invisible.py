"""Characters that nothing shows: a text of nothing else is empty, and keys do not depend on them. Rows keep them."""

import re

INVISIBLE = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\u3164\ufe0f\ufeff"
BLANK = INVISIBLE + "".join(filter(str.isspace, map(chr, range(0x3001))))
"""What is stripped from a text to see if it is empty."""
_ANY = re.compile(f"[{INVISIBLE}]")


def remove_invisible(text: str) -> str:
    """Return the text without these characters."""
    for character in INVISIBLE:  # most texts have none, which an expression takes ten times as long to see
        if character in text:
            return _ANY.sub("", text)
    return text
