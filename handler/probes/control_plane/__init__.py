"""The platform's control plane as the source of truth."""
