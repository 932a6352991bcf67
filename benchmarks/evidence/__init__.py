"""Keep the results of the quickstart's rows over seeds, and compare rows by paired intervals."""
