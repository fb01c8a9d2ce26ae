"""The implementation of the fixtures in tests/conftest.py."""
