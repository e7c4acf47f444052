"""The report of a run: an HTML page, a short form with pictures, and closing lines."""
