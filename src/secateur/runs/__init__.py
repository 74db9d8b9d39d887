"""The main paths, each read top to bottom: `prune`, `adapt`, `quickstart`. The commands run them.

Nothing here is public.
"""

__all__: list[str] = []
