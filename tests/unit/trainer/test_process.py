"""The process of `finetune-trainer`: what it prints when something unexpected ends a thread."""

import subprocess
import sys

THREAD = """
import sys, threading
from finetune_trainer import __main__ as process
from finetune_trainer.commands import check_data
def fail():
    raise ValueError("\\x1b[2J\\u202eone\\nforged line")
def start(*_):
    thread = threading.Thread(target=fail, name="progress")
    thread.start()
    thread.join()
check_data.check_local_rows = start
sys.argv = ["finetune-trainer", "check-data", "rows.jsonl", "--out", "checked"]
process.main()
"""


def test_an_error_in_a_thread_is_logged_without_what_a_terminal_interprets() -> None:
    done = subprocess.run([sys.executable, "-c", THREAD], capture_output=True, text=True, check=True)
    first, *rest = done.stderr.splitlines()
    assert first.endswith("ERROR thread progress: internal error")
    assert rest[0] == "    Traceback (most recent call last):"
    assert rest[-2:] == ["    ValueError: \\u001b[2J\\u202eone", "    forged line"]
