-- A refresh moves expires_at: as long as an index held it, each refresh wrote that index too. What is deleted by age is
-- found by created_at, which never changes.
DROP INDEX sessions_by_expiry;
CREATE INDEX sessions_by_age ON sessions (created_at);
