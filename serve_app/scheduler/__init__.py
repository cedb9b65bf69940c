"""The graph scheduler: a pure machine that decides, and the asyncio shell that keeps its promises in the database."""
