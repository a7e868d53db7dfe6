"""Entry points: `kubectl-finetune`, and `kubectl_complete-finetune`, which kubectl runs for completions."""

import contextlib
import io
import os
import shlex
import sys

from finetune_api.text.printable import printable
from kubectl_finetune.cli import app
from kubectl_finetune.errors import PluginError

PROGRAM = "kubectl-finetune"
NO_FILE_NAMES = 4


def main() -> None:
    """Run a command; exit with the code of the error if it is a PluginError.

    In all other cases Typer exits: with 0, with 130 after Ctrl-C, and with 1 if nothing reads the output any more.
    """
    try:
        app(prog_name=PROGRAM)
    except PluginError as error:
        sys.stderr.write(f"error: {printable(error.message)}\n")
        if error.fix:
            sys.stderr.write(f"  {printable(error.fix)}\n")
        sys.exit(error.code)


def complete() -> None:
    """Print completions as kubectl reads them: one a line, then the directive for the shell."""
    words = [PROGRAM, *(sys.argv[1:] or [""])]
    os.environ |= {
        "_KUBECTL_FINETUNE_COMPLETE": "complete_bash",
        "COMP_WORDS": shlex.join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    found = io.StringIO()
    with contextlib.redirect_stdout(found), contextlib.suppress(SystemExit, PluginError):
        app(prog_name=PROGRAM)
    sys.stdout.write("".join(f"{line}\n" for line in found.getvalue().splitlines() if line))
    sys.stdout.write(f":{NO_FILE_NAMES}\n")


if __name__ == "__main__":
    main()
