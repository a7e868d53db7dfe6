"""The message for a Python package that the installed extra lacks."""

import pytest

from finetune_trainer.commands.extras import explain_missing


@pytest.mark.parametrize(("module", "extra"), [("pyarrow.parquet", "preflight"), ("torch", "trainer")])
def test_a_missing_package_names_the_extra_and_installs_it_from_a_clone(module: str, extra: str) -> None:
    """No index has the project: a package by its name there would be another's."""
    error = explain_missing(ModuleNotFoundError(f"No module named {module!r}", name=module))
    assert error is not None
    assert error.message == (
        f"this command needs the Python package {module.partition('.')[0]}: "
        f"in a clone of the operator's repository: pip install '.[{extra}]'"
    )


def test_a_package_of_no_extra_is_not_explained() -> None:
    assert explain_missing(ModuleNotFoundError("No module named 'other'", name="other")) is None
