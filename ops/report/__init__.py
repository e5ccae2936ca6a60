"""Shows what the reconciler answers to people: in the terminal, and as one self-contained page."""
