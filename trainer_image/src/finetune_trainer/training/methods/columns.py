"""Samples as the data sets of TRL's trainers."""

import pyarrow as pa
from datasets import Dataset
from datasets.fingerprint import generate_random_fingerprint
from datasets.table import InMemoryTable


def to_dataset(columns: pa.Table) -> Dataset:
    """Return the columns as a data set, without a copy.

    The fingerprint is random, because the library would read the whole table to compute one.
    """
    return Dataset(InMemoryTable(columns.replace_schema_metadata()), fingerprint=generate_random_fingerprint())
