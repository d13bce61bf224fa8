"""Unlearning by reward: a response earns more the less it is attributed to the forget owners."""
