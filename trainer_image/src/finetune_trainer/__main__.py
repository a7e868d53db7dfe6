"""The process: install the SIGTERM handler, run the command, end with one exit code and its report."""

# ruff: noqa: PLC0415 - heavy modules are imported when they are needed

from finetune_trainer.sigterm import install

STOP = install()

import logging  # noqa: E402 - the handler is installed before slow imports
import os  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from typing import NoReturn  # noqa: E402


def main() -> NoReturn:
    """Run a command; a named failure ends with its exit code, any other with 70 and a traceback."""
    _set_up_logging()
    from finetune_api.handoff import ExitCode
    from finetune_trainer.cli import app
    from finetune_trainer.commands.extras import explain_missing
    from finetune_trainer.entrypoints.termination import RunState
    from finetune_trainer.errors import TrainerError, find_full_disk, find_gpu_fault

    state = RunState(STOP)
    code = 0
    try:
        app(obj=state)
    except TrainerError as error:
        code = state.fail(error)
    except (SystemExit, KeyboardInterrupt) as error:
        if not state.exits_immediately:
            raise
        code = exit_code_of(error)
    except BaseException as error:  # a panic in a Rust library is not an Exception
        known = explain_missing(error) if isinstance(error, ModuleNotFoundError) else find_gpu_fault(error)
        if known is None:
            logging.getLogger("finetune_trainer").exception("internal error")
            known = find_full_disk(error)  # its traceback names the file
        code = state.fail(known or TrainerError(ExitCode.INTERNAL_ERROR, f"{type(error).__name__}: {error}"))
    if state.exits_immediately:
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def exit_code_of(error: BaseException) -> int:
    """Return the code with which the interpreter would exit."""
    found = error.code if isinstance(error, SystemExit) else 1
    return found if isinstance(found, int) else int(found is not None)


def _set_up_logging() -> None:
    from finetune_api.text.printable import PrintableFormatter, PrintableRecord

    logging.setLogRecordFactory(PrintableRecord)  # transformers, datasets and torch have handlers of their own
    warnings.formatwarning = _format_warning
    warnings.filterwarnings("ignore", category=FutureWarning)  # names that TRL and PEFT use: no user can change them
    formatter = PrintableFormatter("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.getLogger().addHandler(handler)
    logging.getLogger("finetune_trainer").setLevel(logging.INFO)
    # On a CPU it advises to install a package that downloads a kernel, which no user of the image can do.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    threading.excepthook = _log_thread


def _log_thread(failed: threading.ExceptHookArgs) -> None:
    """Log the exception that ended a thread."""
    if (
        failed.exc_type is SystemExit or failed.exc_value is None
    ):  # as in the default hook, and at the interpreter's end
        return
    name = failed.thread.name if failed.thread else "unknown"
    cause = (failed.exc_type, failed.exc_value, failed.exc_traceback)
    logging.getLogger("finetune_trainer").error("thread %s: internal error", name, exc_info=cause)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return a library's warning in one line, without the line of code."""
    from finetune_api.text.printable import printable

    return f"{printable(f'{filename}:{lineno}: {category.__name__}: {message}')}\n"


if __name__ == "__main__":
    main()
