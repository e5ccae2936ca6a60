"""One fake for each interface of the handler: store, probe and platform. tests/contract holds them to the real ones."""
