"""How fast, how good, how near the machine's limit: one record for any model and engine."""
