"""The processes that measure: a client of a server, or the engines themselves."""
