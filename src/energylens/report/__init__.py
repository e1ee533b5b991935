"""Records in, one HTML page or the same as text out."""
