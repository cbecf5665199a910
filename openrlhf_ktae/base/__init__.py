"""What every other package may use: files, ports, batch arithmetic, secrets, shared errors, exit codes."""
