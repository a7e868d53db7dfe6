"""The process of a W&B run: reads one JSON line per message from standard input, writes `ready` to standard output.

It ends with its input, so a killed trainer leaves no process behind.
"""

import json
import os
import sys

import wandb

INIT_SECONDS = 30.0


def log_run() -> int:
    """Create the run of the first line, and send it the other lines."""
    lines = map(json.loads, sys.stdin)
    first = next(lines, None)
    if first is None:
        return 1
    try:
        run = wandb.init(
            project=first["project"],
            entity=first["entity"],
            mode=first["mode"],
            id=first["id"],
            name=first["name"],
            config=first["config"],
            resume="allow" if first["mode"] == "online" else None,
            settings=wandb.Settings(
                init_timeout=INIT_SECONDS,
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
                disable_git=True,
            ),
        )
    except (wandb.Error, ValueError) as error:
        _answer(type(error).__name__)
        return 1
    _answer("ready")
    for line in lines:
        if "settings" in line:
            run.config.update(line["settings"], allow_val_change=True)
        elif "values" in line:
            run.log(line["values"], step=line["step"])
        else:
            run.summary.update(line["summary"])
            run.finish(exit_code=line["exit"])
            return 0
    return 1


def _answer(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    os._exit(log_run())  # the library waits for its server when the interpreter exits
