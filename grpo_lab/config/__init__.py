"""What was asked: the schema of a request, how it is composed, and how it is refused. Imports nothing of ours."""
