-- Set while the user has a second factor: when it last changed.
ALTER TABLE users ADD COLUMN second_factor_at TIMESTAMPTZ;

-- A code of a step up to last_step is spent.
CREATE TABLE totp_factors (
    user_id    UUID PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
    secret     BYTEA NOT NULL,
    last_step  BIGINT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);

CREATE TABLE recovery_codes (
    user_id UUID NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    digest  BYTEA NOT NULL,
    used_at TIMESTAMPTZ,
    PRIMARY KEY (user_id, digest)
);
