"""A model tells what it knows: search for instructions, and the texts that they bring out."""
