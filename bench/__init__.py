"""How fast the project is, beside its peers, in a world of its own on this machine: `make bench`."""
