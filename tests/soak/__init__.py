"""The real handler for minutes, in warm processes and in processes that are killed, while everything goes wrong.

`make soak` runs it (`ARGS="--minutes 1 --seed 7"`), after the simulation (`SCHEDULES=0` leaves that out); no test does.
It checks what can be seen from outside: a trigger in the database records every flip as it happens, and the stand-ins
record what happened to every instance.
"""
