"""How parameters change: one pure update step, the loop around it, and checkpoints."""
