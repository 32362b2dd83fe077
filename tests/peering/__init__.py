"""Two KMEs and the link between them."""
