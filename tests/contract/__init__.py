"""The simulation's models and the real parts, held to the same behaviour by the same tests.

`test_store.py` runs each test against the store in memory and the real one on PostgreSQL, with either type of
`workspaces.status`; `test_drift.py` has both do the same random things and compares every answer; `test_probes.py` does
so with the probe in memory, EC2's and the control plane's; `test_platform.py` with the platform in memory and the HTTP
client.
"""
