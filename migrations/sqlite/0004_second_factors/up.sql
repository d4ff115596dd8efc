-- Set while the user has a second factor: when it last changed.
ALTER TABLE users ADD COLUMN second_factor_at BIGINT;

-- A code of a step up to last_step is spent.
CREATE TABLE totp_factors (
    user_id    BLOB PRIMARY KEY NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    secret     BLOB NOT NULL,
    last_step  BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE recovery_codes (
    user_id BLOB NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    digest  BLOB NOT NULL,
    used_at BIGINT,
    PRIMARY KEY (user_id, digest)
);
