"""What makes a model forget: losses as pure functions, and the registry that names them."""
