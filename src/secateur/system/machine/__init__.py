"""The machine that a model computes on: its devices, and the C library's heap. Importing its modules imports torch."""
