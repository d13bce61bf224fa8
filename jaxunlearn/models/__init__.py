"""A decoder-only language model as pure functions, and its Hugging Face form."""
