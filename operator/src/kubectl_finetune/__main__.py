"""Entry points: `kubectl-finetune`, and `kubectl_complete-finetune`, which kubectl runs for completions."""

import contextlib
import errno
import io
import os
import shlex
import sys
import traceback

from finetune_api.text.printable import printable
from finetune_client.errors import FineTuneError
from kubectl_finetune.cli import app
from kubectl_finetune.errors import ExitCode, exit_code_of

PROGRAM = "kubectl-finetune"
NO_FILE_NAMES = 4
FULL = {errno.ENOSPC, errno.EDQUOT}


def main() -> None:
    """Run a command; exit with the code of the error if it is a FineTuneError.

    Typer exits with 0, with 130 after Ctrl-C, and with 1 if nothing reads the output any more. Any other exception is
    a bug: it ends with 1 and a traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # as kubectl in every locale: another one has no arrows, or fails
    try:
        app(prog_name=PROGRAM)
    except FineTuneError as error:
        sys.stderr.write(f"error: {printable(error.message)}\n")
        if error.fix:
            sys.stderr.write(f"  {printable(error.fix)}\n")
        sys.exit(exit_code_of(error))
    except Exception as error:  # noqa: BLE001 - printed here, because its message may have text of the cluster
        if isinstance(error, OSError) and error.errno in FULL:
            fix = "the output, or the folder for temporary files, which TMPDIR names, is on a full disk"
            sys.stderr.write(f"error: {error.strerror}\n  {fix}\n")
        else:
            sys.stderr.write(printable(traceback.format_exc(), lines=True))
        sys.exit(ExitCode.FAILED)


def complete() -> None:
    """Print completions as kubectl reads them: one a line, then the directive for the shell."""
    words = [PROGRAM, *(sys.argv[1:] or [""])]
    os.environ |= {
        "_KUBECTL_FINETUNE_COMPLETE": "complete_bash",
        "COMP_WORDS": shlex.join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    found = io.StringIO()
    with contextlib.redirect_stdout(found), contextlib.suppress(SystemExit, FineTuneError):
        app(prog_name=PROGRAM)
    sys.stdout.write("".join(f"{line}\n" for line in found.getvalue().splitlines() if line))
    sys.stdout.write(f":{NO_FILE_NAMES}\n")


if __name__ == "__main__":
    main()
