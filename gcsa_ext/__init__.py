"""gcsa_ext (first draft)."""
