"""Node packs of other people: loading them, what their code may import, and their HTTP routes."""
