"""Foreign weights to and from our trees, one file per foreign model."""
