"""The token of an attempt."""

from pathlib import Path

import pytest

from finetune_api.handoff import ExitCode
from finetune_trainer.distributed.peer_proof import Handshake, make_nonce, read_token
from finetune_trainer.errors import TrainerError


def test_a_token_is_the_files_64_digits(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0a" * 32 + "\n")
    assert read_token(tmp_path / "token") == b"\n" * 32


@pytest.mark.parametrize("text", ["", "0a" * 31, "0A" * 32, "\u00e9" * 64])
def test_any_other_content_is_refused_without_being_shown(tmp_path: Path, text: str) -> None:
    (tmp_path / "token").write_text(text, encoding="utf-8")
    with pytest.raises(TrainerError) as caught:
        read_token(tmp_path / "token")
    assert caught.value.code is ExitCode.INVALID_CONFIG
    assert not text or text not in str(caught.value)


def test_a_missing_token_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"token cannot be read: .* pods that train together need a token"):
        read_token(tmp_path / "token")


def test_what_is_sent_does_not_have_the_token_and_differs_for_each_connection() -> None:
    token = bytes(range(32))
    one, two = (Handshake(token, "uid/1", 1, make_nonce(), make_nonce()) for _ in range(2))
    sent = one.proof() + one.to_first().sign("ok") + one.to_other().sign("ok")
    assert token.hex() not in sent
    assert len({one.proof(), two.proof(), one.to_first().sign("ok"), one.to_other().sign("ok")}) == 4
