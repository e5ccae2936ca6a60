"""One fake for each interface: store, probe, platform. tests/contract compares them with the real ones."""
