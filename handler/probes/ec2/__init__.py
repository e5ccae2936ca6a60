"""EC2's own API as the source of truth."""
