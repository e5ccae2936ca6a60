"""Everything the reconciler talks to, on one machine: for the demo, the tests and the benchmarks.

PostgreSQL is the real thing. EC2's API, the control plane and the platform are stand-ins over HTTP. Each part listens
on 127.0.0.1 only, is a context manager, and leaves no process, thread or file behind.
"""
