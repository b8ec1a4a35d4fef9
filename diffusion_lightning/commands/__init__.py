"""The ``lightning`` command, a file per subcommand."""
