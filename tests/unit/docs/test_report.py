"""docs/report.md has the thresholds of the report's rules."""

from pathlib import Path

from finetune_trainer.report.rules import rows, training
from finetune_trainer.report.serving import VLLM_DEFAULT_RANK, VLLM_RANKS

DOCS = Path(__file__).parents[3] / "docs"
GUIDE = (DOCS / "report.md").read_text(encoding="utf-8")


def test_the_guide_names_the_thresholds_of_the_rules() -> None:
    for phrase in (
        f"risen by more than {training.OVERFIT_RISE * 100:.0f} %",
        f"more than {rows.TRUNCATED * 100:.0f} % of the rows are truncated",
        f"fewer than {rows.LABELLED * 100:.0f} % of the tokens are trained",
        f"fewer than {rows.FEW_ROWS} rows",
        f"more than {training.SPIKED * 100:.1f} % of the steps",
        f"less than {training.IDLE_GPU_MEMORY * 100:.0f} % of the GPU's memory",
    ):
        assert phrase in GUIDE


def test_the_guide_names_the_ranks_that_a_server_accepts() -> None:
    *most, last = map(str, VLLM_RANKS)
    assert f"one of {', '.join(most)} and {last};" in GUIDE
    assert f"its rank is at most {VLLM_DEFAULT_RANK}," in GUIDE
