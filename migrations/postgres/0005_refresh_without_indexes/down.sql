ALTER TABLE sessions RESET (fillfactor);
DROP INDEX sessions_by_age;
CREATE INDEX sessions_by_expiry ON sessions (expires_at);
