"""Node classes that make CONDITIONING and change it."""
