"""The door: Python API, command line, export."""
