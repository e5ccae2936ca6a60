"""The two scripts that the cold start compares. Neither imports more than it has to."""
