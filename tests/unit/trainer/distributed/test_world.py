"""The processes of an attempt find each other."""

import time
from datetime import timedelta

import pytest
from free_ports import free_port

from finetune_trainer.distributed import world
from finetune_trainer.errors import Stopped


def test_a_first_process_that_pushes_an_earlier_result_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens no port in the meantime, and ends without one."""
    monkeypatch.setattr(world, "JOIN_SECONDS", 0.2)
    began = time.monotonic()

    def stop_later() -> None:
        if time.monotonic() > began + 1:
            raise Stopped("the first process has ended")

    with pytest.raises(Stopped, match="the first process has ended"):
        world.join(1, 2, (1, 2), ("127.0.0.1", free_port()), stop_later, timeout=timedelta(minutes=1))
