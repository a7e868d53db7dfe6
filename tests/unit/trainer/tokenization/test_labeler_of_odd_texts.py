"""Texts and tokenizers that blur where an answer begins or ends."""

from typing import Any

import pytest
from tokenizers import normalizers

from finetune_trainer.data.rows import BadRow, ChatRow, DataFormat, Message, PreferenceRow, Source
from finetune_trainer.tokenization.labeler import UNTRAINED, Labeler
from finetune_trainer.tokenization.samples import Encoded, EncodedPair
from finetune_trainer.tokenization.template_cache import sentinel
from finetune_trainer.tokenization.turn_spans import SENTINEL

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TRIMMING = CHATML.replace("message['content'] +", "message['content'] | trim +")
OPENING = CHATML.replace("<|im_start|>assistant\n' }}{% endif", "<|im_start|>assistant\n<think>' }}{% endif")
PLAIN = (
    "{% for message in messages %}{{ message['role'] | upper + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
SOURCE = Source("rows.jsonl", 1)
CONTENTS = {
    "spaces around": (" \n One?\t", "\n  First.  \n", "Two? ", " "),
    "text of the template": ("user\n", "assistant\n", "im_end|>\n", "<|im_start"),
    "nothing but repeats": ("a", "a", "a", "a"),
    "its own sentinels": (SENTINEL, f"{sentinel(1)}x", f"{sentinel(0)}?", f"{SENTINEL}y{sentinel(3)}"),
    "many bytes": ("\U0001f98a?", "\U0001f468\u200d\U0001f469", "\u65e5\u672c", "\U0001f1f3\U0001f1f4!"),
    "combining marks": ("e\u0301?", "\u0301begins with one", "n\u0303", "ends with one e\u0301"),
    "right to left and controls": ("\u202eabc", "\u0000\u0007", "\ufeffq", "\u2028x\u2029"),
    "line ends of all kinds": ("a\r\nb", "c\rd\r\n", "\x0be", "f\x85"),
    "template code": ("{{ 7 * 7 }}", "{% endfor %}", "{# x #}", "{{ raise_exception('x') }}"),
}  # fmt: skip


def chat(*texts: str, system: str | None = None) -> ChatRow:
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    messages += [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(texts)]
    return ChatRow(messages, SOURCE, DataFormat.OPENAI)


def samples(labeler: Labeler, row: ChatRow, max_length: int = 4096) -> list[Encoded]:
    result = labeler.encode(row, "Chat", max_length)
    assert not isinstance(result, BadRow), result.detail
    return [sample for sample in result if isinstance(sample, Encoded)]


def runs(labeler: Labeler, sample: Encoded) -> list[str]:
    """The texts of the trained stretches."""
    found: list[list[int]] = []
    before = UNTRAINED
    for label in sample.labels:
        if label != UNTRAINED:
            if before == UNTRAINED:
                found.append([])
            found[-1].append(label)
        before = label
    return [str(labeler.tokenizer.decode(run, skip_special_tokens=False)) for run in found]


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("template", [CHATML, TRIMMING, OPENING])
def test_answers_are_trained_as_written_whatever_their_text(name: str, template: str, build_model: Any) -> None:
    labeler = Labeler(build_model(template))
    texts = CONTENTS[name]
    written = [text.strip() if template == TRIMMING else text for text in texts]
    (sample,) = samples(labeler, chat(*texts))
    whole = "".join(
        f"<|im_start|>{'assistant' if turn % 2 else 'user'}\n{text}<|im_end|>\n" for turn, text in enumerate(written)
    )
    assert sample.input_ids == labeler.tokenizer.encode(whole, add_special_tokens=False).ids
    assert runs(labeler, sample) == [f"{text}<|im_end|>" for text in written[1::2]]


def test_a_system_turn_may_be_empty(build_model: Any) -> None:
    labeler = Labeler(build_model(CHATML))
    (sample,) = samples(labeler, chat("One?", "First.", system=""))
    text = labeler.tokenizer.decode(sample.input_ids, skip_special_tokens=False)
    assert text.startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user\nOne?")
    assert runs(labeler, sample) == ["First.<|im_end|>"]


@pytest.mark.parametrize("form", [normalizers.NFC(), normalizers.NFD(), normalizers.NFKC(), normalizers.Lowercase()])
def test_a_tokenizer_that_normalizes_still_has_every_answer_trained(form: Any, build_model: Any) -> None:
    labeler = Labeler(build_model(CHATML, normalizer=form))
    texts = ("e\u0301?", "\u0301 \ufb01ve caf\u00e9s E\u0301", "\u212b?", "\ufb03")
    (sample,) = samples(labeler, chat(*texts))
    assert runs(labeler, sample) == [f"{form.normalize_str(text)}<|im_end|>" for text in texts[1::2]]


@pytest.mark.parametrize("flags", [{"rstrip": True}, {"lstrip": True}, {"rstrip": True, "lstrip": True}])
def test_a_stop_token_that_swallows_spaces_is_trained(flags: dict[str, bool], build_model: Any) -> None:
    """Phi-3 has such tokens: `<|end|>` takes the line end that follows it."""
    from transformers import PreTrainedTokenizerFast

    directory = build_model(CHATML, flags=flags)
    labeler = Labeler(directory)
    stop = labeler.stop_ids()
    (sample,) = samples(labeler, chat("One?", "First.", "Two?", "  Second. "))
    theirs = PreTrainedTokenizerFast.from_pretrained(directory)
    given: list[Any] = list(chat("One?", "First.", "Two?", "  Second. ").messages)
    assert sample.input_ids == theirs.apply_chat_template(given, return_dict=False)
    assert [run.strip() for run in runs(labeler, sample)] == [
        "First.<|im_end|>",
        "Second.<|im_end|>" if "lstrip" in flags else "Second. <|im_end|>",
    ]
    said = [[Message(role="assistant", content=text)] for text in ("Good.", "\n Bad")]
    row = PreferenceRow([Message(role="user", content="One?")], *said, SOURCE, DataFormat.PREFERENCE)
    (pair,) = labeler.encode(row, "DPO", 4096)  # type: ignore[misc]  # a BadRow does not unpack
    assert isinstance(pair, EncodedPair)
    assert pair.chosen_ids[-1:] == pair.rejected_ids[-1:] == stop


def test_an_answer_without_special_tokens_ends_with_the_end_token(build_model: Any) -> None:
    labeler = Labeler(build_model(PLAIN))
    assert runs(labeler, samples(labeler, chat("One?", "s>"))[0]) == [" s><eos>"]
    both = samples(labeler, chat("One?", "First.", "Two?", "Second."))
    assert [runs(labeler, sample) for sample in both] == [[" First.<eos>"], [" Second.<eos>"]]
    text = labeler.tokenizer.decode(both[1].input_ids, skip_special_tokens=False)
    assert text == "USER: One?\nASSISTANT: First.\nUSER: Two?\nASSISTANT: Second.<eos>"


def test_an_answer_that_nothing_ends_is_refused_for_the_model_would_never_stop(build_model: Any) -> None:
    labeler = Labeler(build_model(PLAIN.replace(" + '\n'", ""), eos_token=None))
    result = labeler.encode(chat("One?", "First."), "Chat", 4096)
    assert isinstance(result, BadRow)
    assert "no end of an answer" in result.detail


def test_a_second_bos_does_not_make_an_answer_that_fits_count_as_cut(build_model: Any) -> None:
    labeler = Labeler(build_model("{{ bos_token }}{{ bos_token }}" + CHATML.replace("<|im_end|>\n", "<|im_end|>")))
    (whole,) = samples(labeler, chat("One?", "First."))
    (fits,) = samples(labeler, chat("One?", "First."), whole.length)
    assert (fits.answer_cut, fits.truncated) == (0, False)
    (cut,) = samples(labeler, chat("One?", "First."), whole.length - 1)
    assert (cut.answer_cut, cut.truncated) == (1, True)
