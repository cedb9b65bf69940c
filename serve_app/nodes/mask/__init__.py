"""Node classes that make and change MASK."""
