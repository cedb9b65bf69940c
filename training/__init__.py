"""Trains the checkpoint that ships with the repository; see training/README.md. The server never imports this."""
