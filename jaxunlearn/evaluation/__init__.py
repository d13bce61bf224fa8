"""Did the model forget, and does it still work: statistics, metrics, and the report."""
