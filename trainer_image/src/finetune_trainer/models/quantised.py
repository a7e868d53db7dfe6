"""The quantization that an adapter was trained on, as the gate's process needs it to load the base again."""

from pydantic import BaseModel


class Quantised(BaseModel):
    """The layers that were trained on in NF4; `compute` is the number format that they compute in."""

    modules: list[str]
    double_quant: bool
    compute: str
