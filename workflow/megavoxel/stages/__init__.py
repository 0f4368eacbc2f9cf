"""One module per subcommand: `add_arguments(parser)` and `run(arguments)`; the work lies in the other packages."""
