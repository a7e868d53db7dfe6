"""Run commands and say what happens."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def say(text: str) -> None:
    """A line on the terminal, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run(*command: str, stdin: str | None = None) -> None:
    """Run a command in the foreground; if it fails, exit with its status."""
    done = subprocess.run(command, check=False, input=stdin, text=True)
    if done.returncode:
        sys.exit(f"`{' '.join(command[:6])} …` failed with status {done.returncode}")
