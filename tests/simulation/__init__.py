"""The real cycle, searched for schedules that do harm.

`handler/cycle.py`, with its decisions, flips, restarts and coverage, runs over models of the database, of EC2 or the
control plane, and of the platform, in simulated time. Before each of its calls, and inside each flip between the
locked re-read and the write, somebody may act: change, clear, delete, pause, hibernate, reprovision, hold or lock the
row, send a heartbeat, stop, start or terminate the instance; EC2 is stale, does not find it or does not answer; the
platform refuses, is blocked, throttles, loses the request, takes it and says so late; the function is delayed, frozen
past its lease, or killed, loses a request to the database or the answer to one; another cycle or dry run begins.

After every write of the function the invariants are checked (`simulation.py`, class Actor), after every cycle its
books, and at the end of a schedule quiet cycles have to settle every restart.

- `test_schedules.py`: nothing breaks them: all schedules of one workspace with two actions at any two points of two
  cycles, and random ones with up to five workspaces, four cycles and six actions;
- `test_guards.py`: without any one of the handler's guards, something does;
- `test_limits.py`: what cannot be promised, as schedules that do harm.

`make test` runs 230,000 schedules in half a minute of one core. To search further: `make simulate ARGS=--exhaustive`,
all 287,651 of one workspace, and `make simulate ARGS="--schedules 1000000 --seed 1"`, a million random ones in three
and a half minutes of two cores. A failure is told line by line, with its seed, and `make simulate ARGS="--replay SEED"`
tells it again.

What is modelled and what is not:

- The store is a model of its own (`tests/fakes/store.py`), which tests/contract compares with PostgreSQL. A transaction
  is one step, but for the flip. What waits for the flip's lock is done right after it.
- Threads: `in_parallel` is replaced by one call after another, or several claims before their calls. A call that
  outlives its cycle (a name lookup that hangs) is not modelled, nor is the order of answers that come at once.
- EC2 may be stale in one answer at a time; not found in two. That it may be so twice in one cycle is a limit, shown in
  `test_limits.py`.
- The platform does what it was asked for within `RESTART_UNCERTAIN_SECONDS`, or never.
- HTTP, SQL, secrets, logs and metrics are not in it.
"""
