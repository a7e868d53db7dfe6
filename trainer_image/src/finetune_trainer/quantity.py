"""Kubernetes quantities, such as `80Gi`, in whole units."""

import re
from decimal import Decimal

POWERS = {"": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5}
PATTERN = re.compile(r"([0-9]+(?:[.][0-9]+)?)(?:(m)|([kMGTP]?)|([KMGTP])i)")


def parse_quantity(quantity: int | str) -> int:
    """The number that a quantity stands for, rounded down; raises ValueError for what is none."""
    found = PATTERN.fullmatch(str(quantity))
    if not found:
        raise ValueError(f"{quantity!r} is not a quantity")
    number, milli, decimal, binary = found.groups()
    if milli:
        return int(Decimal(number) / 1000)
    base, power = (1024, POWERS[binary.replace("K", "k")]) if binary else (1000, POWERS[decimal])
    return int(Decimal(number) * base**power)
