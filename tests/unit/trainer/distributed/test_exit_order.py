import pytest

from finetune_api.handoff import TERMINAL_EXIT_CODES, ExitCode
from finetune_trainer.distributed.rank_processes import exit_code, most_specific


@pytest.mark.parametrize(
    ("codes", "told"),
    [
        ([0, 0], 0),
        ([0, 75], 75),
        ([75, 70], 70),
        ([70, 139, 75], 70),
        ([75, 137, 70], 137),
        ([137, 69, 70], 69),
        ([69, 137, 79], 79),
        ([76, 64], 64),
        ([1, 75, 0], 1),
    ],
)
def test_a_pod_ends_with_the_code_that_tells_most(codes: list[int], told: int) -> None:
    assert most_specific(codes) == told


def test_what_no_other_try_would_change_comes_before_everything_else() -> None:
    for code in TERMINAL_EXIT_CODES:
        assert most_specific([0, 75, 70, 1, 137, ExitCode.STORAGE_UNAVAILABLE, code]) == code


def test_a_signal_is_told_as_a_shell_tells_it() -> None:
    assert [exit_code(one) for one in (0, 75, -9, -15)] == [0, 75, 137, 143]
