"""What a KME costs on the machine it runs on, beside what an empty Flask endpoint costs there."""
