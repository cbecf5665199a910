"""Shared by every other package: files, ports, batch arithmetic, secrets, shared errors, exit codes."""
