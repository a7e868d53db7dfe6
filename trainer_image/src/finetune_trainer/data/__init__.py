"""Read, detect, convert, check and split rows, without torch or transformers."""
