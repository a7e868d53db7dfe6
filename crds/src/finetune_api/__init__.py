"""The FineTuneJob API: names, types, the hand-off between operator and trainer, and the CRD generated from them."""

__version__ = "0.1.0"
