"""Two KMEs under load while everything that can fail does; an auditor says afterwards what became of every key."""
