"""The command line: a file for each command, the options in groups, and main()."""
