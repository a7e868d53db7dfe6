"""Foreign text, such as object keys, messages and logs, as people see it."""
