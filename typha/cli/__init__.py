"""The command line: one module per command. `main` imports a module when its command is used."""
