"""Finds the control tokens of a tokenizer in texts; some tokenizers have a thousand, and texts are long."""

import re
from collections.abc import Sequence

Tree = dict[str, "Tree"]
_END = ""


def control_pattern(tokens: Sequence[str]) -> re.Pattern[str]:
    """Matches the longest of these tokens, and nothing when there are none.

    The tokens become a tree, for Python would try one after the other wherever a text shows their first sign.
    """
    tree: Tree = {}
    for token in filter(None, tokens):
        at = tree
        for sign in token:
            at = at.setdefault(sign, {})
        at[_END] = {}
    try:
        return re.compile(_write(tree) or "(?!)")
    except RecursionError:  # tokens that nest in each other hundreds of times
        return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))


def _write(tree: Tree) -> str:
    chain = ""
    while len(tree) == 1 and _END not in tree:
        ((sign, tree),) = tree.items()
        chain += re.escape(sign)
    branches = [re.escape(sign) + _write(after) for sign, after in tree.items() if sign != _END]
    if not branches:
        return chain
    return f"{chain}(?:{'|'.join(branches)}){'?' if _END in tree else ''}"
