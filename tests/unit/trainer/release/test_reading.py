"""A server that reads otherwise than a result was trained does not answer with it, unless the release accepts that."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from release_to_vllm import World
from tiny_model import CHAT_TEMPLATE, SPECIAL_TOKENS, build_tokenizer
from tokenizer_families import FAMILIES
from tokenizers import AddedToken, Tokenizer, processors
from vllm_stand_in import stand_in

from finetune_api.release import ReleaseOutcome
from finetune_trainer.tokenization.labeler import Labeler

INSTRUCT = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
)
WITHOUT_SYSTEM = CHAT_TEMPLATE.replace(
    "{% for message in messages %}",
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}",
)
TEXTS = [{"text": f"A document about number {number}."} for number in range(20)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with stand_in() as server:
        yield World(tmp_path, server)


def write_tokenizer(
    folder: Path, template: str = CHAT_TEMPLATE, build: Callable[[], Tokenizer] = build_tokenizer, *, bos: bool = False
) -> Path:
    folder.mkdir()
    tokenizer = build()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    if bos:
        first = SPECIAL_TOKENS[0]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", special_tokens=[(first, tokenizer.token_to_id(first))]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"chat_template": template, "bos_token": SPECIAL_TOKENS[0], "eos_token": SPECIAL_TOKENS[2]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_server_that_reads_as_the_training_did_answers_with_the_result(world: World, tmp_path: Path) -> None:
    trained = write_tokenizer(tmp_path / "trained")
    world.server.reader = Labeler(trained)
    found = world.release(world.publish("one", tokenizer=trained))
    assert found.outcome is ReleaseOutcome.RELEASED, found.message
    assert "does not read" not in found.message


def test_another_chat_template_is_refused_with_the_flag_and_both_texts(world: World, tmp_path: Path) -> None:
    world.server.reader = Labeler(write_tokenizer(tmp_path / "server", INSTRUCT))
    one = world.publish("one", tokenizer=write_tokenizer(tmp_path / "trained"))
    found = world.release(one)
    assert found.outcome is ReleaseOutcome.REFUSED
    assert r"writes another text, '…INST] Hello [/INST]' in place of '…user\nHello<|im_end|>\n<|im_start|>" in (
        found.message
    )
    assert f"--chat-template /there/{world.folder_of(one)}/chat_template.jinja" in found.message
    assert "set require.tokens to Any if this is intended" in found.message
    assert not world.server.loaded


def test_a_release_that_accepts_other_tokens_is_done_and_states_them(world: World, tmp_path: Path) -> None:
    world.server.reader = Labeler(write_tokenizer(tmp_path / "server", INSTRUCT))
    one = world.publish("one", tokenizer=write_tokenizer(tmp_path / "trained"))
    for _ in range(2):
        found = world.release(one, require={"tokens": "Any"})
        assert found.outcome is ReleaseOutcome.RELEASED
        assert "the server does not read what the result was trained on: its chat template writes" in found.message


def test_a_result_that_answers_already_and_is_read_otherwise_now_is_refused_and_keeps_the_name(
    world: World, tmp_path: Path
) -> None:
    trained = write_tokenizer(tmp_path / "trained")
    one = world.publish("one", tokenizer=trained)
    world.server.reader = Labeler(trained)
    answering = world.release(one).answering
    world.server.reader = Labeler(write_tokenizer(tmp_path / "server", INSTRUCT))
    found = world.release(one, answering=answering)
    assert (found.outcome, found.answering) == (ReleaseOutcome.REFUSED, answering)
    assert "keeps it" in found.message
    assert world.server.loaded == {"bot": f"/there/{world.folder_of(one)}"}


def test_another_tokenizer_is_refused_with_its_flag(world: World, tmp_path: Path) -> None:
    """As with the class LlamaTokenizer, which puts no space before a part that follows a special token."""
    trained = write_tokenizer(tmp_path / "trained", build=FAMILIES["a space before every part"])
    world.server.reader = Labeler(write_tokenizer(tmp_path / "server", build=FAMILIES["a space before the first part"]))
    one = world.publish("one", tokenizer=trained)
    found = world.release(one)
    assert found.outcome is ReleaseOutcome.REFUSED
    assert "its tokenizer gives other tokens, " in found.message
    assert f"start it with `--tokenizer /there/{world.folder_of(one)}`" in found.message


def test_the_message_of_a_row_that_is_read_otherwise_has_no_text_of_it(world: World, tmp_path: Path) -> None:
    guarded = CHAT_TEMPLATE.replace("message['content']", "(message['content'] | replace('secret', '*'))")
    world.server.reader = Labeler(write_tokenizer(tmp_path / "server", guarded))
    turns = [
        {"role": "system", "content": "The secret."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "None."},
    ]
    found = world.release(
        world.publish("one", tokenizer=write_tokenizer(tmp_path / "trained"), rows=[{"messages": turns}])
    )
    assert found.outcome is ReleaseOutcome.REFUSED
    assert "its chat template writes another text, from token " in found.message
    assert "ecret" not in found.message


def test_a_system_text_is_asked_as_it_was_trained_if_the_template_has_no_turn_for_it(
    world: World, tmp_path: Path
) -> None:
    trained = write_tokenizer(tmp_path / "trained", WITHOUT_SYSTEM)
    world.server.reader = Labeler(trained)
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
    ]
    rows = [{"messages": [*turns[:2], {"role": "assistant", "content": f"Because of {n}."}]} for n in range(20)]
    one, two = (world.publish(name, tokenizer=trained, rows=rows, weights=name.encode()) for name in ("one", "two"))
    world.release(one)
    found = world.release(two)
    assert found.outcome is ReleaseOutcome.RELEASED, found.message
    assert found.comparison
    assert found.comparison.rows == 20


@pytest.mark.parametrize("bos", [False, True])
def test_documents_are_read_with_the_token_that_begins_them(world: World, tmp_path: Path, bos: bool) -> None:
    spec: dict[str, Any] = {"objective": "DomainAdaptation", "evaluation": {}}
    trained = write_tokenizer(tmp_path / "trained", bos=True)
    world.server.reader = Labeler(trained if bos else write_tokenizer(tmp_path / "server"))
    found = world.release(world.publish("one", tokenizer=trained, rows=TEXTS, spec=spec))
    assert found.outcome is (ReleaseOutcome.RELEASED if bos else ReleaseOutcome.REFUSED), found.message
    assert ("its tokenizer gives other tokens, from token 2 on; start it with `--tokenizer " in found.message) != bos


def test_a_result_whose_tokenizer_cannot_be_read_is_refused(world: World, tmp_path: Path) -> None:
    trained = write_tokenizer(tmp_path / "trained")
    (trained / "tokenizer.json").write_text("{")
    found = world.release(world.publish("one", tokenizer=trained))
    assert found.outcome is ReleaseOutcome.REFUSED
    assert "the tokenizer of the result cannot be read" in found.message
