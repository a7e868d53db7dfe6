"""Several objects at once: every one is transferred, large ones alone, and the first error ends it."""

import threading
from pathlib import Path

import pytest

from finetune_trainer.errors import ObjectMissing
from finetune_trainer.storage.local import LocalStore
from finetune_trainer.storage.transfers import AT_ONCE, SMALL_BYTES, transfer_all


def test_every_small_object_is_under_way_before_the_first_has_ended() -> None:
    meeting = threading.Barrier(AT_ONCE, timeout=60)

    def meet() -> None:
        meeting.wait()

    transfer_all((1, meet) for _ in range(AT_ONCE))
    assert not meeting.broken


def test_large_objects_come_one_after_another() -> None:
    lock, done = threading.Lock(), list[int]()

    def move(number: int) -> None:
        assert lock.acquire(blocking=False), "two large objects at once"
        done.append(number)
        lock.release()

    transfer_all((SMALL_BYTES, lambda number=number: move(number)) for number in range(20))
    transfer_all([*((SMALL_BYTES, lambda number=number: move(number)) for number in range(20, 24)), *[(1, int)] * 9])
    assert done == list(range(24))


@pytest.mark.parametrize("size", [1, SMALL_BYTES], ids=["small", "large"])
def test_the_first_error_ends_the_others_that_have_not_begun(size: int) -> None:
    begun = list[int]()

    def move(number: int) -> None:
        begun.append(number)
        if number == 3:
            raise ObjectMissing("s3://bucket/3")

    with pytest.raises(ObjectMissing, match="s3://bucket/3"):
        transfer_all((size, lambda number=number: move(number)) for number in range(10_000))
    assert len(begun) < 10_000


def test_a_folder_of_many_files_arrives_whole_in_the_order_of_its_listing(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / "from" / f"{number % 7}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / f"{number % 7}" / f"{number:03d}").write_text(str(number))
    store = LocalStore({"s3://bucket/rows": tmp_path / "from"})
    seen = list[int]()
    paths = store.download_folder("s3://bucket/rows", tmp_path / "to", seen.append)
    assert [path.read_text() for path in paths] == [str(int(path.name)) for path in paths]
    assert len(paths) == 300
    assert paths == sorted(paths)
    assert sum(seen) == sum(path.stat().st_size for path in paths)
