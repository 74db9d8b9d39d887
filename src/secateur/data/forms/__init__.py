"""Rows of every accepted form, their turns, and the documents that they become; what is left out is counted."""
