"""vLLM serves a job's full model, by the commands that the job's report prints."""

from typing import Any

import pytest
from report_snippets import snippet
from vllm_server import serving

pytestmark = pytest.mark.timeout(2700)


def test_the_full_model_answers_as_in_the_report(result: Any) -> None:
    copy, serve = snippet(result.report, "The full model", "It needs no adapter").rsplit("\n", 1)
    result.run(copy)
    assert "The full model answers the same." in result.report
    with serving(serve, result.folder) as server:
        assert server.models() == {"tuned"}
        server.check_answers(result.report, "The full model")
