"""The quantisation of the base under an adapter, with which the gate's process repeats it."""

from pydantic import BaseModel


class Quantised(BaseModel):
    """The weights that were in NF4 during the training; `compute` is the number format of their computation.

    `modules` has the names of linear layers, and of experts those of their parameters.
    """

    modules: list[str]
    double_quant: bool
    compute: str
