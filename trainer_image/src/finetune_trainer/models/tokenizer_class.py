"""Whether transformers reads a tokenizer as it was trained.

For some classes it builds the tokenizer by rules of its own, from the vocabulary alone: `LlamaTokenizer` has no space
before a part that follows a special token, but the normaliser in the `tokenizer.json` of the first Llamas puts one.
"""

import json
import logging
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from finetune_trainer.models.files.base_model import TOKENIZER_CONFIG
from finetune_trainer.tokenization.labeler import Labeler

logger = logging.getLogger(__name__)

CLASS = "tokenizer_class"
AS_IT_IS = "PreTrainedTokenizerFast"
"""The class that reads `tokenizer.json` and nothing else, in every version of transformers."""
PROBES = (
    "It's 12,345.67 apples!", "I'LL [see] <this>", " a  b", "  two\n\n three \n", "a\tb\r\n",
    "na\u00efve \u65e5\u672c \U0001f98a",
)  # fmt: skip


def name_class(directory: Path, labeler: Labeler) -> None:
    """Make the tokenizer's configuration in a result name the class that reads it as the labeler does, unless the one
    that it names does so."""
    path = directory / TOKENIZER_CONFIG
    config = json.loads(path.read_bytes()) if path.is_file() else {}
    named = str(config.get(CLASS, ""))
    kind: Any = getattr(transformers, named.removesuffix("Fast"), None)
    is_built = isinstance(kind, type) and issubclass(kind, PreTrainedTokenizerFast)
    if is_built and _reads_otherwise(kind, directory, labeler):
        logger.info("%s reads this tokenizer.json otherwise: the result names %s", named, AS_IT_IS)
        path.write_text(json.dumps(config | {CLASS: AS_IT_IS}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def is_read_otherwise(model: Path, labeler: Labeler) -> bool:
    """Return whether transformers, and with it a server, reads the base's tokenizer otherwise than the training did."""
    return _reads_otherwise(AutoTokenizer, model, labeler)


def _reads_otherwise(kind: Any, directory: Path, labeler: Labeler) -> bool:
    """Return whether a class gives other tokens; what it cannot load is left as it is."""
    try:
        tokenizer = kind.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - each class has errors of its own; none is a reason to lose a training
        logger.info("%s does not load the tokenizer, so its tokens are not compared: %s", kind.__name__, error)
        return False
    mark = next(iter(labeler.special_tokens), "")
    return any(
        tokenizer(text, add_special_tokens=False)["input_ids"]
        != labeler.tokenizer.encode(text, add_special_tokens=False).ids
        for probe in PROBES
        for text in (probe, f"{mark}{probe}{mark} {probe}")
    )
