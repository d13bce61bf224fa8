"""What brings forgotten rows back: attacks on the models of a finished run."""
