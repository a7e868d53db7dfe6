import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CONTROL_TOKEN = re.compile(
    r"<\|[^|<>'\"{}\s]{1,40}\|>|<\uff5c[^\uff5c]{1,40}\uff5c>|</?s>|<(?:start|end)_of_turn>|<end_of_utterance>"
    r"|<\|[a-z_]+>|<[a-z_]+\|>|\[/?INST\]"
)
WORDS = ["the quick brown fox answers the question of the user about the system"] * 3

NO_FLAGS: dict[str, bool] = {}

BuildModel = Callable[..., Path]


@pytest.fixture
def build_model(tmp_path: Path) -> BuildModel:
    """Writes a tokenizer that knows the control tokens of a chat template, and returns its directory."""

    def build(
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
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>"} | config
        if template is not None:
            (tmp_path / "chat_template.jinja").write_text(template)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        return tmp_path

    return build
