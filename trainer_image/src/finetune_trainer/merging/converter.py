"""Where this image has llama.cpp, and the command of its converter of models to GGUF."""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from finetune_trainer.errors import InvalidConfig

LLAMA_CPP = Path(sys.prefix) / "share/llama.cpp"
"""Its converter, and its Python bindings with what they import."""
OUTPUT_TYPES = {"FP32": "f32", "BF16": "bf16", "FP16": "f16"}


def require_converter() -> None:
    """Refuse `output.gguf` before the training if this image cannot make such files."""
    if not _script().is_file():
        raise InvalidConfig(
            "output.gguf: this trainer image has no llama.cpp: use the operator's image, or build it with "
            "trainer_image/llama-cpp.sh as the Dockerfile does (on this machine too), or remove output.gguf"
        )


def converter_command(model: Path, precision: str, output: Path) -> list[str]:
    """Return the command that writes a model's folder as a GGUF file, in the number format of the model."""
    return [
        sys.executable, str(_script()), "--outtype", OUTPUT_TYPES[precision], "--outfile", str(output), str(model),
    ]  # fmt: skip


def import_llama_cpp() -> ModuleType:
    """Return the bindings of llama.cpp's C functions, in a process that has them in its path, without the package's
    other modules: one of them imports a cache that reads pickles, and the image does not have it."""
    found, package = find_spec("llama_cpp"), ModuleType("llama_cpp")
    package.__path__ = list((found and found.submodule_search_locations) or [])
    sys.modules["llama_cpp"] = package
    return import_module("llama_cpp.llama_cpp")


def _script() -> Path:
    return LLAMA_CPP / "convert_hf_to_gguf.py"
