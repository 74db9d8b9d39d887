"""`secateur sparsify`: what is checked (`job`), the main path (`command`)."""
