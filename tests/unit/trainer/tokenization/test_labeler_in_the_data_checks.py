import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.data.checks.pipeline import check_rows
from finetune_trainer.data.checks.summary import Summary
from finetune_trainer.data.rows import ChatRow, NamedPath, Rejected
from finetune_trainer.tokenization.labeler import Labeler

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TWO = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "First."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "Second."},
]


def test_rows_are_checked_and_labelled_in_one_pass(build_model: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows: list[Any] = [
        {"messages": TWO},
        {"instruction": "<eos>", "output": "a"},
        {"instruction": "q", "output": "a " * 99},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    summary = Summary()
    results = list(
        check_rows(
            [NamedPath(path, "rows.jsonl")], summary=summary, labeler=Labeler(build_model(CHATML)), max_length=64
        )
    )
    assert isinstance(results[0], ChatRow)
    assert results[0].encodings[0].trained > 0
    counts = summary.to_dict()
    assert counts["rejectedRowsByCode"] == {"CONTROL_TOKEN_IN_TEXT": 1}
    assert counts["repairedRowsByCode"] == {"TRUNCATED": 1, "ANSWER_CUT": 1}
    assert (counts["samples"], counts["answersCut"]) == (2, 1)
    assert 0 < counts["trainedTokens"] < counts["tokens"]


def test_a_row_that_is_refused_for_its_length_counts_in_the_lengths(build_model: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"instruction": "q" * 500, "output": "a"}))
    summary = Summary()
    labeler = Labeler(build_model(CHATML))
    (result,) = check_rows([NamedPath(path, "rows.jsonl")], summary=summary, labeler=labeler, max_length=64)
    assert isinstance(result, Rejected)
    assert summary.lengths.longest == result.tokens > 500
    assert summary.to_dict()["lengths"]["advisedMaxLength"] == 576


@pytest.mark.process
def test_neither_torch_nor_transformers_is_imported() -> None:
    code = (
        "import sys, finetune_trainer.data.checks.pipeline, finetune_trainer.data.checks.output;"
        "import finetune_trainer.data.checks.split;"
        "sys.exit(bool({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
