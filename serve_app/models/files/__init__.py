"""Model files: opening them, their tensors by name, which part of a model they hold, and writing them."""
