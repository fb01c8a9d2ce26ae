"""Jobs: written with the transaction that they belong to, and run at least once."""
