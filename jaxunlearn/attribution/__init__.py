"""Whose training texts a response comes from: attributors that see the response alone."""
