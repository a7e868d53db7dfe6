import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from trl_templates import FOLDER

from finetune_trainer.tokenization.labeler import Labeler

CONTROL_TOKEN = re.compile(
    r"<\|[^|<>'\"{}\s]{1,40}\|>|<\uff5c[^\uff5c]{1,40}\uff5c>|</?s>|<(?:start|end)_of_turn>|<end_of_utterance>"
    r"|<\|[a-z_]+>|<[a-z_]+\|>|\[/?INST\]"
)
WORDS = ["the quick brown fox answers the question of the user about the system"] * 3
NO_FLAGS: dict[str, bool] = {}

BuildModel = Callable[..., Path]


def write_model(
    directory: Path,
    template: str | None = None,
    *,
    tokens: tuple[str, ...] = (),
    words: list[str] = WORDS,
    flags: dict[str, bool] = NO_FLAGS,
    normalizer: normalizers.Normalizer | None = None,
    **config: object,
) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    special = ["<bos>", "<eos>", *sorted(set(CONTROL_TOKEN.findall(template or ""))), *tokens]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False, **flags) for token in special])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>"} | config
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture
def build_model(tmp_path: Path) -> BuildModel:
    """Write a tokenizer with the special tokens of a chat template; return its directory."""
    return functools.partial(write_model, tmp_path)


@pytest.fixture(scope="session")
def shipped_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a tokenizer with the template of this name; one for all tests."""

    @functools.cache
    def build(name: str) -> Path:
        return write_model(tmp_path_factory.mktemp(name), (FOLDER / f"{name}.jinja").read_text())

    return build


@pytest.fixture(scope="session")
def shipped_labeler(shipped_model: Callable[[str], Path]) -> Callable[[str], Labeler]:
    """The labeler of that directory: most of the time goes into compiling its template."""
    return functools.cache(lambda name: Labeler(shipped_model(name)))


@pytest.fixture(scope="session")
def shipped_tokenizer(shipped_model: Callable[[str], Path]) -> Callable[[str], Any]:
    """What transformers makes of that directory."""
    from transformers import PreTrainedTokenizerFast

    return functools.cache(lambda name: PreTrainedTokenizerFast.from_pretrained(shipped_model(name)))
