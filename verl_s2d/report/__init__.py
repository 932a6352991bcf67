"""The report over rows and seeds, and the text output of the commands."""
