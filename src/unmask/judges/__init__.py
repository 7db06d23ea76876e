"""Judges at work: the offline one, models behind APIs, people with a table; and how far they agree."""
