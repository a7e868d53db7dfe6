"""One file per way of training; each owns its library's trainer."""
