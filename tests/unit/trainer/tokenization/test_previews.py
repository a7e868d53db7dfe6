from typing import Any

import pytest

from finetune_trainer.data.rows import (
    ChatRow,
    DataFormat,
    Message,
    PreferenceRow,
    PromptRow,
    Source,
    TextRow,
    UnpairedRow,
)
from finetune_trainer.tokenization.chat_samples import PendingChat
from finetune_trainer.tokenization.labeler import Labeler
from finetune_trainer.tokenization.previews import abridge, preview_pending
from finetune_trainer.tokenization.renderer import FoundAnswers
from finetune_trainer.tokenization.token_spans import Tokens
from finetune_trainer.tokenization.tokenizer import load_tokenizer_files
from finetune_trainer.tokenization.turn_spans import Rendering

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SOURCE = Source("rows.jsonl", 1)
ASKED = [Message(role="user", content="the question?")]


def said(text: str) -> list[Message]:
    return [Message(role="assistant", content=text)]


def test_a_long_piece_shows_how_it_begins_and_ends() -> None:
    prompt = "Begin " + "x" * 1000 + " end?"
    (shown, is_trained), answer = abridge([(prompt, False), ("Short.", True)])
    assert shown.startswith("Begin ")
    assert shown.endswith(" end?")
    assert "[…711 characters…]" in shown
    assert not is_trained
    assert answer == ("Short.", True)


def test_a_row_that_is_cut_is_shown_as_it_is_trained(build_model: Any) -> None:
    labeler = Labeler(build_model(CHATML))
    row = ChatRow([*ASKED, *said("the fox answers " * 20)], SOURCE, DataFormat.OPENAI)
    (sample,) = labeler.encode(row, "Chat", 40)  # type: ignore[misc]  # a BadRow does not unpack
    prompt, answer, note = labeler.preview(row, "Chat", 40)
    assert prompt == ("<|im_start|>user\nthe question?<|im_end|>\n<|im_start|>assistant\n", False)
    assert answer[1]
    assert ("the fox answers " * 20).startswith(answer[0])
    assert note == (f" [{sample.left_out} tokens do not fit in maxLength]", False)
    assert labeler.preview(row, "Chat", 4000) == labeler.preview(row)


def test_a_pair_that_is_cut_is_shown_with_both_answers_as_they_are_trained(build_model: Any) -> None:
    labeler = Labeler(build_model(CHATML))
    asked = [Message(role="user", content="x" * 100)]
    row = PreferenceRow(asked, said("Good."), said("y" * 60), SOURCE, DataFormat.PREFERENCE)
    prompt, chosen_name, chosen, rejected_name, rejected, note = labeler.preview(row, "DPO", 60)
    assert prompt[0].endswith("xx<|im_end|>\n<|im_start|>assistant\n")
    assert not prompt[1]
    assert not prompt[0].startswith("<|im_start|>user")
    assert (chosen_name, chosen) == (("\n[chosen] ", False), ("Good.<|im_end|>", True))
    assert rejected_name == ("\n[rejected] ", False)
    assert rejected[1]
    assert "y" * 60 not in rejected[0]
    assert "tokens do not fit" in note[0]


def test_a_judged_answer_and_a_prompt_that_are_cut_show_the_end_of_the_prompt(build_model: Any) -> None:
    labeler = Labeler(build_model(CHATML))
    asked = [Message(role="user", content="x" * 100)]
    judged = UnpairedRow(asked, said("Good."), False, SOURCE, DataFormat.UNPAIRED)
    pieces = labeler.preview(judged, "KTO", 50)
    assert [is_trained for _, is_trained in pieces] == [False, False, True, False]
    assert pieces[1:3] == [("\n[undesirable] ", False), ("Good.<|im_end|>", True)]
    alone = labeler.preview(PromptRow(asked, SOURCE, DataFormat.OPENAI), "RLHF", 50)
    assert alone[0][0].endswith("x<|im_end|>\n<|im_start|>assistant\n")
    assert "tokens do not fit" in alone[1][0]
    assert [is_trained for _, is_trained in alone] == [False, False]


@pytest.mark.parametrize(("label", "name"), [(True, "[desirable]"), (False, "[undesirable]")])
def test_an_answer_is_shown_with_its_judgement(label: bool, name: str, build_model: Any) -> None:
    row = UnpairedRow(ASKED, said("Good."), label, SOURCE, DataFormat.UNPAIRED)
    assert Labeler(build_model(CHATML)).preview(row)[1:] == [(f"\n{name} ", False), ("Good.<|im_end|>", True)]


def test_a_document_in_pieces_is_shown_as_a_whole_for_nothing_of_it_is_lost(build_model: Any) -> None:
    labeler = Labeler(build_model())
    row = TextRow("the fox " * 50, SOURCE, DataFormat.TEXT)
    assert labeler.preview(row, "DomainAdaptation", 16) == [(row.text, True)]


def test_answers_in_samples_of_their_own_are_distinguished(shipped_labeler: Any) -> None:
    messages = [*ASKED, *said("First."), *ASKED, *said("Second.")]
    shown = "".join(text for text, _ in shipped_labeler("qwen3").preview(ChatRow(messages, SOURCE, DataFormat.OPENAI)))
    assert shown.count("[the next answer, in a sample of its own]") == 1


def test_an_answer_without_a_token_of_its_own_is_shown_as_context(build_model: Any) -> None:
    labeler = Labeler(build_model(CHATML, words=["abcdef"] * 50))
    assert len(labeler.tokenizer.encode("abcdef", add_special_tokens=False).ids) == 1
    found = FoundAnswers([Rendering("abcdef", ((1, 2),), (1,))])
    tokens = Tokens(load_tokenizer_files(build_model(CHATML)))
    assert preview_pending(PendingChat(found, (), tokens), labeler.tokenizer) == [("abcdef", False)]
