"""The same tests on the fakes and on the real parts, so that both behave alike.

`test_store.py` runs each test on the store in memory and on the real one in PostgreSQL, with either type of
`workspaces.status`. `test_drift.py` takes both through the same random life and compares every answer.
`test_probes.py` and `test_platform.py` do the same as `test_store.py` for the probes and the platform's clients.
"""
