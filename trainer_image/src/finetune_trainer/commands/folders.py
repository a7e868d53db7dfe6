"""Folders that options name, checked before any work."""

import os
from pathlib import Path

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import InvalidConfig, TrainerError


def require_folder(path: Path, option: str) -> Path:
    """Return the path of an option if it is a folder or one can be made there; else raise, with the option's name."""
    nearest = next(one for one in (path, *path.absolute().parents) if one.exists() or one.is_symlink())
    if not nearest.is_dir():
        where = "is a file" if nearest == path else f"is below the file {nearest}"
        raise TrainerError(ExitCode.OUTPUT_CONFLICT, f"{option} {path} {where}; nothing was changed: name a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        problem = f"{option} {path} cannot be written, because you have no right to write to {nearest}"
        raise InvalidConfig(f"{problem}: name another folder")
    return path
