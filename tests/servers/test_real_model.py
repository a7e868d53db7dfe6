"""vLLM serves an adapter of the demo's real model, by the commands of its report."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT
from report_snippets import answers, snippet
from vllm_server import serving

pytestmark = pytest.mark.timeout(2700)

HYPERPARAMETERS = {
    "maxSteps": 12,
    "learningRate": 3e-3,
    "perDeviceTrainBatchSize": 4,
    "gradientAccumulationSteps": 1,
    "maxLength": 128,
}


def test_an_adapter_of_smollm2_answers_as_in_the_report(make_result: Callable[..., Any], tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "tests" / "demo" / "data.py", tmp_path], check=True, capture_output=True)
    lines = (tmp_path / "kubernetes-fields.jsonl").read_text().splitlines()[:50]
    rows = [json.loads(line) for line in lines if line.startswith('{"instruction"')]
    result = make_result("smollm2", tmp_path / "model", rows, hyperparameters=HYPERPARAMETERS)
    result.run(snippet(result.report, "The adapter", "Copy the folders"))
    with serving(snippet(result.report, "The adapter", "With vLLM"), result.folder) as server:
        assert server.models() == {"base", "tuned"}
        for question, answer in answers(result.report).items():
            reply = server.run(snippet(result.report, "The adapter", "Ask it"), Hello=question)
            assert reply["choices"][0]["message"]["content"].startswith(answer)
        assert answers(result.report) != answers(result.report, "Base model")
