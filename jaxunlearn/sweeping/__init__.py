"""Many settings of one config: made, run by any number of processes, and reported together."""
