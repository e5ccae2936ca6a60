"""The reconciler's whole world on one machine, for the demo, the tests and the benchmarks.

PostgreSQL with the platform's tables, EC2's API, the control plane and the platform's restart: each is the real thing
where that fits into a virtual environment, and a stand-in over HTTP where it does not. Everything listens on 127.0.0.1
only, is a context manager, and leaves no process, thread or file behind.
"""
