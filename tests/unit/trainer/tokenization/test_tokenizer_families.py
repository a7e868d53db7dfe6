"""Spans and divisions on tokenizers that are no byte-level BPE, against transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from finetune_trainer.data.rows import BadRow, ChatRow, DataFormat, Message, PreferenceRow, Source
from finetune_trainer.tokenization.labeler import UNTRAINED, Labeler
from finetune_trainer.tokenization.samples import Encoded, EncodedPair

INST = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = ["the quick brown fox answers the question of the user", " Good one. Bad.", "assistant user"] * 3
PROMPT: list[Message] = [{"role": "user", "content": "the question?"}]
ANSWERS = [("Good one.", "Bad."), ("\n\nGood.", "Bad"), ("\u65e5\u672c fox", "the  fox \U0001f98a")]
SOURCE = Source("rows.jsonl", 1)


def byte_fallback() -> Tokenizer:
    """As the first two Llamas have it: a space is put in front, and bytes stand for what has no token."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    tokenizer.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=400, special_tokens=special))
    return tokenizer


def unigram(scheme: str) -> Callable[[], Tokenizer]:
    def build() -> Tokenizer:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
        trainer = trainers.UnigramTrainer(
            vocab_size=200, special_tokens=["<unk>"], unk_token="<unk>", initial_alphabet=["\n"]
        )
        tokenizer.train_from_iterator(WORDS, trainer)
        return tokenizer

    return build


def word_pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(WORDS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"]))
    return tokenizer


FAMILIES = {
    "byte fallback": byte_fallback,
    "a space before every part": unigram("always"),
    "a space before the first part": unigram("first"),
    "no space before": unigram("never"),
    "word pieces": word_pieces,
}


def save(directory: Path, build: Callable[[], Tokenizer], template: str, *, with_bos: bool) -> None:
    tokenizer = build()
    special = ["</s>", "<|im_start|>", *(["<s>"] if with_bos else [])]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"eos_token": "</s>", "pad_token": "</s>", "chat_template": template}
    config |= {"bos_token": "<s>"} if with_bos else {}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(("template", "with_bos"), [(INST, True), (CHATML, True), (CHATML, False)])
@pytest.mark.parametrize("family", FAMILIES)
def test_labels_and_pairs_are_cut_from_what_transformers_tokenises(
    family: str, template: str, with_bos: bool, tmp_path: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    save(tmp_path, FAMILIES[family], template, with_bos=with_bos)
    labeler, theirs = Labeler(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    asked = theirs.apply_chat_template(PROMPT, add_generation_prompt=True, return_dict=False)
    for chosen, rejected in ANSWERS:
        pair = only(labeler.encode(pair_row(chosen, rejected), "DPO", 1000))
        chat = only(labeler.encode(ChatRow([*PROMPT, said(chosen)], SOURCE, DataFormat.OPENAI), "Chat", 1000))
        assert isinstance(pair, EncodedPair)
        assert isinstance(chat, Encoded)
        assert pair.prompt_ids == asked
        for answer, ids in ((chosen, pair.chosen_ids), (rejected, pair.rejected_ids)):
            whole = theirs.apply_chat_template([*PROMPT, said(answer)], return_dict=False)
            assert asked + ids == whole[: len(asked) + len(ids)]
            assert ids[-1] == theirs.eos_token_id
        assert [label for label in chat.labels if label != UNTRAINED] == pair.chosen_ids


def said(text: str) -> Message:
    return Message(role="assistant", content=text)


def pair_row(chosen: str, rejected: str) -> PreferenceRow:
    return PreferenceRow(PROMPT, [said(chosen)], [said(rejected)], SOURCE, DataFormat.PREFERENCE)


def only(result: Any) -> Any:
    assert not isinstance(result, BadRow), result.detail
    (sample,) = result
    return sample
