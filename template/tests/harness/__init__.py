"""The machinery behind tests/conftest.py, a module for each idea."""
