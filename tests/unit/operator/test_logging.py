"""The operator's log: a record is one line in text and in JSON, whatever a message of the cluster contains."""

import json
import logging
from collections.abc import Iterator

import pytest

from finetune_operator import __main__ as process
from finetune_operator.__main__ import set_up_logging
from finetune_operator.settings import Settings

HOSTILE = "pods is forbidden\n2026-01-01 00:00:00,000 ERROR   forged\x1b[2J\x9b2J\u202egnp.exe\x7f"
SHOWN = "pods is forbidden\\n2026-01-01 00:00:00,000 ERROR   forged\\u001b[2J\\u009b2J\\u202egnp.exe\\u007f"


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """Restore the root logger, which the set-up replaces."""
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]


def log(form: str, capsys: pytest.CaptureFixture[str]) -> str:
    set_up_logging(Settings(trainer_image="x", log_format=form))
    log = logging.getLogger("finetune_operator.test")
    log.warning("resync skipped: %s", HOSTILE)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        log.exception("failed")
    return capsys.readouterr().err


def test_a_message_of_the_cluster_forges_no_line_of_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    first, second, *more = log("text", capsys).splitlines()
    assert first.endswith(f"WARNING finetune_operator.test: resync skipped: {SHOWN}")
    assert second.endswith("ERROR   finetune_operator.test: failed")
    assert [line for line in more if not line.startswith("    ")] == []
    assert more[-1].endswith("forged\\u001b[2J\\u009b2J\\u202egnp.exe\\u007f")


def test_a_reader_of_the_json_gets_text_that_a_terminal_can_show(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = map(json.loads, log("json", capsys).splitlines())
    assert first["message"] == f"resync skipped: {SHOWN}"
    assert second["error"].splitlines()[-1].endswith("forged\\u001b[2J\\u009b2J\\u202egnp.exe\\u007f")
    assert second["error"].isprintable() is False
    assert "\x1b" not in second["error"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_error_that_ends_the_operator_is_logged_like_any_other(
    form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(_: Settings) -> None:
        raise ValueError(HOSTILE)

    monkeypatch.setattr(process, "run", fail)
    monkeypatch.setenv("FINETUNE_TRAINER_IMAGE", "x")
    monkeypatch.setenv("FINETUNE_LOG_FORMAT", form)
    with pytest.raises(SystemExit) as ended:
        process.main()
    err = capsys.readouterr().err
    assert ended.value.code == 1
    assert "ValueError: pods is forbidden" in err
    assert [line for line in err.splitlines() if line.startswith("2026-01-01")] == []
    assert not {"\x1b", "\x9b", "\u202e", "\x7f"} & set(err)
    if form == "json":
        assert json.loads(err)["level"] == "error"
