"""A result on the hub: what is asked of the place before any work, what of a folder is for others, the upload."""
