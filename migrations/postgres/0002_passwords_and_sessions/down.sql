DROP INDEX users_with_imported_hash;
DROP TABLE imported_hashes;
ALTER TABLE audit_events DROP COLUMN city;
ALTER TABLE audit_events DROP COLUMN country;
ALTER TABLE audit_events DROP COLUMN device;
ALTER TABLE sessions DROP COLUMN city;
ALTER TABLE sessions DROP COLUMN country;
ALTER TABLE users DROP COLUMN password_changed_at;
