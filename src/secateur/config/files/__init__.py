"""Options as files: recipes, the YAML that repeats a run, the schema of one. Imports no torch."""
