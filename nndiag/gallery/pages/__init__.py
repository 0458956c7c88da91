"""One file a page; they are discovered, not registered."""
