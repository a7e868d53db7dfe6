"""Feeds the data front door with files that a coverage-guided fuzzer makes up, under every objective.

python tests/fuzz/check_rows.py [-max_total_time=60] [CORPUS]; needs `pip install atheris`, which few Pythons have a
wheel of and no other test needs. A failure prints the file that made it; the first byte chooses name and objective.
"""

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import get_args

import atheris

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures"))

with atheris.instrument_imports(include=["finetune_trainer.data"]):
    from finetune_trainer.data.checks.pipeline import check_rows
    from finetune_trainer.data.checks.summary import Summary
    from finetune_trainer.data.formats.export import ExportFormat, Unexpressed, export_row
    from finetune_trainer.data.rows import NamedPath, Objective, Rejected, UnreadableFile

import logging

from row_rules import assert_rules

NAMES = ("rows.jsonl", "rows.json", "rows.csv", "rows.tsv")
OBJECTIVES = (*get_args(Objective), None)
SEEDS = (
    b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "tool_calls": []}]}\n',
    b'{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "tools": "[]"}\n',
    b'{"instruction": "q", "input": "", "output": "a", "system": "s", "history": [["q", "a"]]}\n',
    b'{"prompt": "q", "chosen": "a", "rejected": "b"}\n{"prompt": "q", "completion": "a", "label": true}\n',
    b'{"data": [{"text": "\\n\\nHuman: q\\n\\nAssistant: a"}]}',
    b'instruction,output\n"q, ""x""\n",a\n',
)


def check(data: bytes) -> None:
    """One file; what breaks a rule is an AssertionError, and any other exception a crash."""
    if not data:
        return
    name, objective = NAMES[data[0] % len(NAMES)], OBJECTIVES[data[0] // len(NAMES) % len(OBJECTIVES)]
    path = FOLDER / name
    path.write_bytes(data[1:])
    summary = Summary()
    try:
        results = list(check_rows([NamedPath(path, name)], summary=summary, objective=objective))
    except UnreadableFile:
        return
    assert_rules(results, summary, objective)
    for row in results:
        for target in ExportFormat:
            if not isinstance(row, Rejected):
                with contextlib.suppress(Unexpressed):
                    export_row(row, target)


if __name__ == "__main__":
    logging.disable()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        FOLDER = Path(scratch)
        corpus = FOLDER / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(SEEDS):
            for first in range(len(NAMES) * len(OBJECTIVES)):
                (corpus / f"{number}-{first}").write_bytes(bytes([first]) + seed)
        atheris.Setup([*sys.argv, str(corpus)], check)
        atheris.Fuzz()
