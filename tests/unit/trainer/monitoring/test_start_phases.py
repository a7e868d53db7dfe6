import gc
import logging
import re
from contextlib import suppress

import pytest

from finetune_trainer.monitoring.start_phases import StartPhases

LINE = re.compile(r"ready after ([\d.]+) s \(([\d.]+) s of processor time\): (.+)")


def lines(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records]


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "finetune_trainer")


def test_the_summary_names_each_phase_once_and_in_order(caplog: pytest.LogCaptureFixture) -> None:
    start = StartPhases()
    for name in ("download", "model", "download"):
        start.end(name)
    start.log("ready")
    found = LINE.fullmatch(lines(caplog)[0])
    assert found
    assert re.sub(r"[\d.]+ \([\d.]+\)", "T", found[3]) == "download T, model T"


def test_the_first_phase_begins_with_the_process(caplog: pytest.LogCaptureFixture) -> None:
    start = StartPhases()
    start.end("libraries")
    start.log("ready")
    found = LINE.fullmatch(lines(caplog)[0])
    assert found
    assert float(found[1]) > 0  # pytest itself took longer than a tenth of a second to start
    assert float(found[2]) > 0


def test_a_summary_begins_where_the_one_before_ended_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    start = StartPhases()
    start.end("preflight")
    start.log("ready")
    start.end("model")
    start.log("ready")
    start.log("ready")
    first, second = (LINE.fullmatch(line) for line in lines(caplog))
    assert first
    assert second
    assert float(second[1]) < float(first[1])
    assert second[3].startswith("model")


def test_libraries_are_imported_without_garbage_collection_which_is_as_before_afterwards() -> None:
    start = StartPhases()
    with start.libraries():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with start.libraries():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_garbage_is_collected_again_after_an_import_that_failed() -> None:
    with suppress(ImportError), StartPhases().libraries():
        raise ImportError
    assert gc.isenabled()
