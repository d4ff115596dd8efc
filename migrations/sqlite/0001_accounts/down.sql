DROP TABLE ephemeral_entries;
DROP TABLE audit_events;
DROP TABLE outbox;
DROP TABLE sessions;
DROP TABLE users;
DROP TABLE installation;
