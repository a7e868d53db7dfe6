"""What is measured, as records, and the rules that judge it."""
