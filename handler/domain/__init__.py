"""The decisions and the values they are based on. Pure: no clock, no I/O, no imports from other rooms."""
