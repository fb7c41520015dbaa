"""The `nas` command: parse, call, print."""
