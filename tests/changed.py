"""Print the unit tests that mirror what changed since HEAD; all of them if that is not clear."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UNIT = Path("tests/unit")
PROGRAMS = {
    "crds/src/finetune_api": UNIT / "api",
    "operator/src/finetune_client": UNIT / "finetune_client",
    "operator/src/finetune_operator": UNIT / "operator",
    "operator/src/kubectl_finetune": UNIT / "kubectl_finetune",
    "trainer_image/src/finetune_trainer": UNIT / "trainer",
}
DOCUMENTS = (".md", ".j2")


def changed_files() -> list[Path]:
    """Return the files that differ from HEAD, those that git does not track included."""
    command = ["git", "ls-files", "--modified", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    staged = subprocess.run(
        ["git", "diff", "--cached", "--name-only"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return sorted({Path(line) for line in (listed + staged).splitlines()})


def tests_of(path: Path) -> list[Path]:
    """Return the unit tests of one changed file: its room's folder, or the program's if there is none."""
    if path.is_relative_to(UNIT):
        is_test = path.name.startswith("test_") and path.suffix == ".py"
        return [path] if is_test else [path.parent]
    for source, tests in PROGRAMS.items():
        if path.is_relative_to(source):
            room = tests / path.relative_to(source).parts[0]
            found = [room if (ROOT / room).is_dir() else tests]
            # Everything else is made of the API's types: the files generated from them have tests of their own.
            return [*found, UNIT / "docs"] if tests.name == "api" or path.suffix in DOCUMENTS else found
    if path.suffix in DOCUMENTS:
        return [UNIT / "docs"]
    return [] if path.parts[0] in {"requirements", ".github"} else [UNIT]


def main() -> None:
    """Print the smallest set of paths, on one line."""
    found = {tests for path in changed_files() for tests in tests_of(path) if (ROOT / tests).exists()}
    smallest = [path for path in found if not any(path != other and path.is_relative_to(other) for other in found)]
    print(*sorted(smallest or [UNIT / "docs"]))


if __name__ == "__main__":
    main()
