"""The report of a run: Markdown, page, pictures and model cards, made from its record."""
