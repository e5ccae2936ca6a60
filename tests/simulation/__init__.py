"""The real cycle, searched for schedules that do harm.

`handler/cycle.py`, with its decisions, flips, doubts, restarts and coverage, runs over models of the database, of EC2
or the control plane, and of the platform, in simulated time. Before each of its calls, and inside each flip and each
claim between the locked re-read and the write, something may happen:

- to the row: it is changed, cleared, deleted, paused, hibernated, reprovisioned, put on hold, locked, or sends a
  heartbeat; the platform's own monitor takes it offline, or the platform restarts it by itself;
- to our own rows: somebody locks a restart, doubts, the coverage or the lease; somebody puts everything on hold;
- to the instance: it is stopped, started or terminated;
- to EC2: it is stale, does not find the instance, or does not answer;
- to the platform: nobody can connect; it refuses, is blocked, throttles, loses the request, accepts it and says so
  late, accepts it in vain, or fails to provision;
- to the function: evidence grows old on the way; it is delayed, frozen for a moment or past its lease, or killed; it
  loses a request to the database, or the answer; another cycle or dry run begins, or a cycle after an event of EC2's,
  which may be a lie.

In some of the random worlds running instances send heartbeats, the monitor takes offline what has sent none for 180
seconds, and restarts it once, or does not; the cycles get done only a part of the candidates; and some cycles override
the breaker, or adopt by hand.

The invariants are checked after every write of the function, and as it asks the platform (`simulation.py`, class
Actor):

- nothing is flipped, adopted, claimed or asked for on evidence that is older than five seconds, nor without two
  sightings of death, nor against a hold, a heartbeat, another's lock, or a lease that is lost;
- no restart comes before its grace is over, in its back-off, or while an earlier request may be under way;
- the breaker is what its two rules say, worked out anew (class Oracle); while it is open, nothing is flipped or
  adopted, and no restart is claimed that is not released;
- only what a cycle saw dead while its row was up is adopted, and nothing that somebody is restarting;
- a cycle after EC2's events writes flips and doubts alone, nothing past its expiry, and against no heartbeat that came
  after the death; the restarts of its flips wait for silence.

Events and restarts are counted after every cycle. A full cycle that nothing disturbed leaves a doubt or a restart for
everybody whom it saw in trouble. At the end of a schedule, quiet cycles have to close every restart, end every watch or
owe the restart again, and take or remember everybody who is dead: nobody is silent.

- `test_schedules.py`: no schedule breaks them: all schedules of one workspace with two actions at any two points of two
  cycles (its instance runs or is stopped; or the platform has taken it offline, or has restarted it in vain), those
  whose first cycle comes after an event, and random ones with up to five workspaces, six cycles and six actions;
- `test_targets.py`: nor do random ones over two Regions or accounts, of which one may be down, or know nobody. There
  the real probe over several targets runs over models of them (`tests/fakes/targets.py`);
- `test_shards.py`: nor do random ones of two shards that work beside each other, with full cycles in between;
- `test_guards.py`: without any one of the handler's guards, some schedule does;
- `test_limits.py`: what cannot be promised, shown as schedules that do harm.

`make test` runs 450,000 schedules in a minute on one core. To search further: `make simulate ARGS=--exhaustive`, all
735,435 of one workspace in two minutes on two cores, and `make simulate ARGS="--schedules 1000000 --seed 1"`, a million
random ones. A failure is printed line by line, with its seed; `make simulate ARGS="--replay SEED"` prints it again.

What is modelled and what is not:

- The store is a model of its own (`tests/fakes/store.py`), which tests/contract compares with PostgreSQL. A transaction
  is one step, except flip and claim. Whatever waits for the flip's lock happens right after it. A claim locks no row of
  the platform's: what happens to the row after the claim's last look is the platform's own window (`test_limits.py`).
- Threads: `in_parallel` is replaced by one call after another, or several claims before their calls, and `gathered` by
  lists of one, or of all that a probe in bulk answers. A call that outlives its cycle (a name lookup that hangs) is not
  modelled, nor is the order of answers that come at once.
- The process's clock stands still while it is frozen. So what is sent right after it thaws may be late by the
  database's clock; what is written may not.
- EC2 may be stale in one answer at a time, and not find an instance in two. It can be stale twice in one cycle: this
  limit is shown in `test_limits.py`.
- The platform does what it was asked for within `RESTART_UNCERTAIN_SECONDS`, or never.
- Of several targets, none has another's instances, and all are asked for few.
- More than 1,000 unknowns with one cause and a changing number of shards are not modelled, nor are HTTP, SQL, queues,
  secrets, logs and metrics.
"""
