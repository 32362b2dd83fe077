"""KMEs on one machine for people to try and for programs to drive. Everything in one directory."""
