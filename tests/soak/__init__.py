"""The real handler for minutes on end, warm and in processes that are killed, while everything around it goes wrong.

`make soak` runs it (`ARGS="--minutes 1 --seed 7"`), after the simulation (`SCHEDULES=0` leaves that out); no test does.
What is asserted is what can be seen from outside: a trigger in the database notes every flip as it happens, and the
stand-ins note what became of every instance.
"""
