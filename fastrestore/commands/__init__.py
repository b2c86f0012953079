"""The commands of the `fastrestore` program, one a module; `fastrestore.cli` loads them by name."""
