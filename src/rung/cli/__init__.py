"""The command line: thin. It parses, calls the library and prints; results to stdout, everything else to stderr."""
