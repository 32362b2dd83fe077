-- Ceremonies that were held on the token and are in the log: one row for each transcript.
CREATE TABLE ceremony (
    transcript BLOB PRIMARY KEY CHECK (length(transcript) = 32),
    name       TEXT NOT NULL
) STRICT, WITHOUT ROWID;
