"""The real cycle, searched for schedules that do harm.

`handler/cycle.py`, with its decisions, flips, restarts and coverage, runs over models of the database, of EC2 or the
control plane, and of the platform, in simulated time. Before each of its calls, and inside each flip between the
locked re-read and the write, something may happen:

- to the row: it is changed, cleared, deleted, paused, hibernated, reprovisioned, put on hold, locked, or sends a
  heartbeat;
- to the instance: it is stopped, started or terminated;
- to EC2: it is stale, does not find the instance, or does not answer;
- to the platform: it refuses, is blocked, throttles, loses the request, or accepts it and says so late;
- to the function: it is delayed, frozen past its lease, or killed; it loses a request to the database, or the answer;
  another cycle or dry run begins.

The invariants are checked after every write of the function (`simulation.py`, class Actor), events and restarts are
counted after every cycle, and at the end of a schedule quiet cycles have to close every restart.

- `test_schedules.py`: no schedule breaks them: all schedules of one workspace with two actions at any two points of two
  cycles, and random ones with up to five workspaces, four cycles and six actions;
- `test_guards.py`: without any one of the handler's guards, some schedule does;
- `test_limits.py`: what cannot be promised, shown as schedules that do harm.

`make test` runs 230,000 schedules in half a minute on one core. To search further: `make simulate ARGS=--exhaustive`,
all 287,651 of one workspace, and `make simulate ARGS="--schedules 1000000 --seed 1"`, a million random ones in three
and a half minutes on two cores. A failure is printed line by line, with its seed; `make simulate
ARGS="--replay SEED"` prints it again.

What is modelled and what is not:

- The store is a model of its own (`tests/fakes/store.py`), which tests/contract compares with PostgreSQL. A transaction
  is one step, except the flip. Whatever waits for the flip's lock happens right after it.
- Threads: `in_parallel` is replaced by one call after another, or several claims before their calls. A call that
  outlives its cycle (a name lookup that hangs) is not modelled, nor is the order of answers that come at once.
- EC2 may be stale in one answer at a time, and not find an instance in two. It can be stale twice in one cycle: this
  limit is shown in `test_limits.py`.
- The platform does what it was asked for within `RESTART_UNCERTAIN_SECONDS`, or never.
- HTTP, SQL, secrets, logs and metrics are not modelled.
"""
