"""The two scripts that the cold start compares. Both run as files, with the built artifact as their only packages."""
