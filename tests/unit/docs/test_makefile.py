"""`make unit` runs every unit test once, although its parts are lists of folders."""

import subprocess

from documents import ROOT

PARTS = ("unit-data", "unit-trainer", "unit-rest")


def test_every_unit_test_is_in_one_part_of_make_unit() -> None:
    done = subprocess.run(["make", "-n", *PARTS], cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [ROOT / word for word in done.stdout.split() if word.startswith("tests/unit/")]
    for test in (ROOT / "tests" / "unit").rglob("test_*.py"):
        assert len([path for path in paths if test.is_relative_to(path)]) == 1, test
