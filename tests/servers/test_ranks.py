"""vLLM accepts the ranks that the report and the documentation name."""

import re
import subprocess
from typing import Any

import pytest
from report_snippets import snippet
from vllm_server import PROGRAMS, serving

from finetune_trainer.report.serving import VLLM_RANKS

pytestmark = pytest.mark.timeout(2700)


def test_the_server_names_the_ranks_that_the_documentation_names() -> None:
    command = [PROGRAMS / "vllm", "serve", "base", "--enable-lora", "--max-lora-rank", "24"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert refused.returncode != 0
    choices = re.search(r"invalid choice: 24 \(choose from ([\d, ]+)\)", refused.stderr)
    assert choices, refused.stderr[-2000:]
    assert tuple(map(int, choices.group(1).split(","))) == (1, *VLLM_RANKS)


def test_an_adapter_of_a_higher_rank_is_served_with_its_flag_and_its_own_template(wide: Any) -> None:
    wide.run(snippet(wide.report, "The adapter", "Copy the folders"))
    with serving(snippet(wide.report, "The adapter", "With vLLM"), wide.folder) as server:
        server.check_answers(wide.report, "The adapter")
