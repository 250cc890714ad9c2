"""The front door: the command line and what it launches."""
