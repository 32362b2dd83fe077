-- Whether a token was ever let remember this store: one that remembers nothing then is a new one.
ALTER TABLE lineage ADD COLUMN anchored INTEGER NOT NULL DEFAULT 0 CHECK (anchored IN (0, 1));
