"""A decoder-only language model as pure functions of (params, tokens), and its Hugging Face form."""
