"""Spans and divisions on tokenizers that are no byte-level BPE, against transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizer_families import FAMILIES
from tokenizers import AddedToken, Tokenizer

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
PROMPT: list[Message] = [{"role": "user", "content": "the question?"}]
ANSWERS = [("Good one.", "Bad."), ("\n\nGood.", "Bad"), ("\u65e5\u672c fox", "the  fox \U0001f98a")]
SOURCE = Source("rows.jsonl", 1)


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
