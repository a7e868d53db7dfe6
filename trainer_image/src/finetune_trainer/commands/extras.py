"""Which extra of the package has what a command needs: the small ones leave out much."""

from finetune_trainer.errors import InvalidConfig, TrainerError

PREFLIGHT = frozenset({"boto3", "botocore", "numpy", "pyarrow", "regex"})
TRAINER = frozenset(
    {"accelerate", "bitsandbytes", "datasets", "markdown_it", "matplotlib", "peft", "safetensors", "torch",
     "transformers", "trl"}
)  # fmt: skip


def explain_missing(error: ModuleNotFoundError) -> TrainerError | None:
    """Return the error with the extra to install; None for a module that no extra has."""
    name = (error.name or "").partition(".")[0]
    extra = "preflight" if name in PREFLIGHT else "trainer" if name in TRAINER else None
    if extra is None:
        return None
    # from a clone: no index has the project, and a package by its name there would be another's
    install = f"in a clone of the operator's repository: pip install '.[{extra}]'"
    return InvalidConfig(f"this command needs the Python package {name}: {install}")
