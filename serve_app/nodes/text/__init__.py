"""Node classes that join, search, format and generate text."""
