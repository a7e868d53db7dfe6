from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.checks.output import CheckOutput
from finetune_trainer.data.rows import ChatRow, Rejected

Check = Callable[..., tuple[list[Any], Any]]


@pytest.mark.parametrize("header", [b"instr\xe9,output", b"\x80", b"\xff\xc3\x28,\x81"])
def test_a_header_that_is_not_utf8_is_reported_readably(check: Check, tmp_path: Path, header: bytes) -> None:
    results, summary = check(header, b"a,b" if b"," in header else b"a", name="rows.csv")
    assert [row.code for row in results] == [RejectCode.UNKNOWN_FORMAT]
    assert "\ufffd" in results[0].detail
    with CheckOutput(tmp_path / "out", summary) as output:
        output.write(results[0])
    assert "\ufffd" in (tmp_path / "out" / "rejected.jsonl").read_text("utf-8")


def test_an_undecodable_column_next_to_the_needed_ones_rejects_no_row(check: Check) -> None:
    results, _ = check(b"instruction,output,caf\xe9", b"a,b,c", name="rows.csv")
    assert isinstance(results[0], ChatRow)
    assert not any(isinstance(row, Rejected) for row in results)
