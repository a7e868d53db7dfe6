"""The data front door: read, detect, convert, check and split rows, without torch or transformers."""
