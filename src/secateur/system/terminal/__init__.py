"""What is shown and heard at a terminal: streams, a line that lives, tables, signals."""
