"""Readers, one file per data set; each returns a `Corpus`."""
