import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.data.checks.pipeline import check_rows
from finetune_trainer.data.checks.summary import Summary
from finetune_trainer.data.rows import NamedPath, Rejected, Row

Check = Callable[..., tuple[list[Row | Rejected], Summary]]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Check the given rows (objects or raw bytes) as one file; return the results and the summary."""

    def run(*rows: Any, name: str = "rows.jsonl", **options: Any) -> tuple[list[Row | Rejected], Summary]:
        path = tmp_path / name
        path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows))
        summary = Summary()
        results = list(check_rows([NamedPath(path, f"s3://data/{name}")], summary=summary, **options))
        return results, summary

    return run
