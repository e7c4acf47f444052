"""The report: what a run is worth, in words, as a page, and in pictures."""
