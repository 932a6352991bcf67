"""avg@k with its standard error, paired comparison, and the report over rows and seeds."""
