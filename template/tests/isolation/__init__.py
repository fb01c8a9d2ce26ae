"""Proof, on this machine and this database, that no test can disturb another.

The probes bring routes and a table of their own; they depend on no feature of the service.
"""
