"""The process: the SIGTERM handler first, then the command, then one exit code with its report."""

# ruff: noqa: PLC0415 - what is heavy is imported when it is needed

from finetune_trainer.stop import install

STOP = install()

import logging  # noqa: E402 - the handler stands before anything that takes time to load
import sys  # noqa: E402
import time  # noqa: E402
from typing import NoReturn  # noqa: E402


def main() -> NoReturn:
    """Run a command; every failure that has a name ends in its exit code, any other in 70 with a traceback."""
    _set_up_logging()
    from finetune_api.handoff import ExitCode
    from finetune_trainer.cli import app
    from finetune_trainer.errors import TrainerError
    from finetune_trainer.run_state import RunState

    state = RunState(STOP)
    try:
        app(obj=state)
    except TrainerError as error:
        sys.exit(state.fail(error))
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # a panic in a library written in Rust is no Exception
        logging.getLogger("finetune_trainer").exception("internal error")
        sys.exit(state.fail(TrainerError(ExitCode.INTERNAL_ERROR, f"{type(error).__name__}: {error}")))
    sys.exit(0)


def _set_up_logging() -> None:
    formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.getLogger().addHandler(handler)
    logging.getLogger("finetune_trainer").setLevel(logging.INFO)


if __name__ == "__main__":
    main()
