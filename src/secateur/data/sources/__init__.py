"""Files and folders of every accepted type, and the rows in them."""
