"""Prove, on your machine and your database, that no test affects another.

The probes have their own routes and tables, and need no feature of the service.
"""
