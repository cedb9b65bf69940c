"""Text encoders, and language models that generate text."""
