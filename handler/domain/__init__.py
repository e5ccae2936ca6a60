"""The decisions and the values they rest on. Pure: no clock, no I/O, and nothing imported from the other rooms."""
