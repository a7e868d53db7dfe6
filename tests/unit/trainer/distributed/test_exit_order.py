import pytest

from finetune_api.handoff import TERMINAL_EXIT_CODES, ExitCode
from finetune_trainer.distributed.rank_processes import most_specific, to_exit_code


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([0, 0], 0),
        ([0, 75], 75),
        ([75, 70], 70),
        ([70, 139, 75], 70),
        ([75, 137, 70], 137),
        ([137, 69, 70], 69),
        ([69, 137, 79], 79),
        ([76, 64], 64),
        ([70, 139, 80, 75], 80),
        ([1, 75, 0], 1),
    ],
)
def test_a_pod_ends_with_the_most_specific_code(codes: list[int], expected: int) -> None:
    assert most_specific(codes) == expected


def test_a_permanent_failure_comes_first() -> None:
    for code in TERMINAL_EXIT_CODES:
        assert most_specific([0, 75, 70, 1, 137, ExitCode.STORAGE_UNAVAILABLE, code]) == code


def test_a_signal_has_the_exit_code_of_a_shell() -> None:
    assert [to_exit_code(one) for one in (0, 75, -9, -15)] == [0, 75, 137, 143]
