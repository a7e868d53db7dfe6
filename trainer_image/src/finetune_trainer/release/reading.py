"""Whether a server reads conversations and texts as a result was trained on them.

All adapters of a server share its chat template and its tokenizer, which may be those of the base, or of another
result: no server refuses that, and the answers are worse without a word.
"""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from finetune_trainer.data.rows import BadRow, DataFormat, Message, Source, TextRow
from finetune_trainer.models.files.base_model import TOKENIZER
from finetune_trainer.release.candidate import Refused
from finetune_trainer.release.vllm_server import ReadToken
from finetune_trainer.tokenization.labeler import Labeler
from finetune_trainer.tokenization.samples import Encoded
from finetune_trainer.tokenization.template import TemplateFailure
from finetune_trainer.tokenization.tokenizer import TokenizerUnavailable

LONGEST_TEXT = 1 << 20
EXCERPT = 60
"""Characters of a text that a message shows from the first difference."""
OTHER_TOKENIZER = "its tokenizer gives other tokens"
GREETING = "Hello"
"""The only prompt whose text a message shows: it is not of the data."""


class Reading:
    """The tokens that a result's own tokenizer and chat template give for what its server is asked."""

    def __init__(self, labeler: Labeler) -> None:
        self._labeler = labeler

    def fit(self, turns: list[Message]) -> list[Message]:
        """Return a conversation as it was trained: without a system turn if the template has none."""
        return self._labeler.renderer(None).fit_system(turns)[0]

    def find_prompt_problem(self, turns: list[Message], served: Sequence[ReadToken]) -> str | None:
        """Return how the server reads a prompt otherwise; `served` are its tokens but the first."""
        try:
            trained = self._labeler.render_prompt(turns)[1]
        except BadRow:
            return None
        found = self._find_difference(trained[1:], served)
        if found is None:
            return None
        same, before, now = found
        is_greeting = [turn["content"] for turn in turns] == [GREETING]
        where = f"{_cut(now)} in place of {_cut(before)}" if is_greeting else _place(same)
        if "".join(before.split()) == "".join(now.split()):
            return f"{OTHER_TOKENIZER}, {where}"
        return f"its chat template writes another text, {where}"

    def find_text_problem(self, text: str, served: Sequence[ReadToken]) -> str | None:
        """Return how the server reads a text otherwise, which the training ended with a token of its own."""
        samples = self._labeler.encode(TextRow(text, Source("", 0), DataFormat.TEXT), "DomainAdaptation", LONGEST_TEXT)
        if isinstance(samples, BadRow) or not isinstance(samples[0], Encoded):
            return None
        found = self._find_difference(samples[0].input_ids[1 : len(served) + 1], served)
        return f"{OTHER_TOKENIZER}, {_place(found[0])}" if found else None

    def _find_difference(self, trained: Sequence[int], served: Sequence[ReadToken]) -> tuple[int, str, str] | None:
        """Return the number of equal tokens, and the texts after them; None if all are equal."""
        ids = [one.token_id for one in served]
        if list(trained) == ids:
            return None
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(trained, ids, strict=False)))
        before = self._labeler.tokenizer.decode(trained[same:], skip_special_tokens=False)
        return same, before, "".join(one.text for one in served[same:])


def _place(same: int) -> str:
    """Return where a text differs, in place of the text, which is of the data; the first token is not compared."""
    return f"from token {same + 2} on"


def _cut(text: str) -> str:
    """Return how a message shows the rest of a text, of which the server's first token is not known."""
    return repr(f"…{text[:EXCERPT]}")


def load_reading(folder: Path) -> Reading | None:
    """Return how a result reads, from copies of its tokenizer's files; None without them. Raises Refused."""
    if not (folder / TOKENIZER).is_file():
        return None
    try:
        return Reading(Labeler(folder))
    except (TokenizerUnavailable, TemplateFailure) as error:
        raise Refused(f"the tokenizer of the result cannot be read: {error}") from error
