"""Chat templates, token ids and labels of rows; no torch."""
