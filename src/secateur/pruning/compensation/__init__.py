"""What stays takes over at a cut: each linear by itself (`single`), or all in sequence (`sequence`)."""
