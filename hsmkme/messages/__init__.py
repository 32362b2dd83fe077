"""kme-peer/1: what two adjacent KMEs say to each other."""
