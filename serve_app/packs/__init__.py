"""Third-party node packs: loading them, the modules that their code may import, and their HTTP routes."""
