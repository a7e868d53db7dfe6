"""The report for people: record.py holds what happened, the other files say it."""
