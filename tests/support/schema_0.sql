-- infra/schema.sql as it was before the schema had a version number. The tests upgrade what it made.

-- The reconciler's own state, in a schema of its own. The platform's tables are not touched.
-- Safe to run again, at every upgrade:   psql "$OWNER_URL" -v ON_ERROR_STOP=1 -f infra/schema.sql
-- The rights of the function's role are in grants.sql.

CREATE SCHEMA IF NOT EXISTS reconciler;
COMMENT ON SCHEMA reconciler IS 'State of the instance-state reconciler between its cycles.';

-- Who runs now. A row is kept for each scope; it is free when it has expired.
CREATE TABLE IF NOT EXISTS reconciler.lease (
    scope       TEXT PRIMARY KEY,
    holder      UUID NOT NULL,
    acquired_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    expires_at  TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE reconciler.lease IS
    'Keeps applying cycles from running side by side. Nothing is doubled without it: the lock on the '
    'workspace''s row and the claim on the restart see to that.';

-- Where the next full cycle begins (one row).
CREATE TABLE IF NOT EXISTS reconciler.sweep (
    singleton         BOOLEAN PRIMARY KEY DEFAULT true CHECK (singleton),
    cursor            UUID NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    pass_began_at     UUID NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    first             UUID[] NOT NULL DEFAULT '{}',
    began_at          TIMESTAMPTZ,
    pass_completed_at TIMESTAMPTZ
);
COMMENT ON TABLE reconciler.sweep IS 'How far the full cycles have got through the candidates.';
COMMENT ON COLUMN reconciler.sweep.cursor IS 'Every candidate up to this id, since pass_began_at, has been checked.';
COMMENT ON COLUMN reconciler.sweep.pass_began_at IS 'The id behind which the present pass began.';
COMMENT ON COLUMN reconciler.sweep.first IS 'Looked dead, but there was no time left to act, or were cut off: they come first.';
COMMENT ON COLUMN reconciler.sweep.began_at IS 'When the first full cycle began.';
COMMENT ON COLUMN reconciler.sweep.pass_completed_at IS 'When every candidate had last been checked.';
INSERT INTO reconciler.sweep DEFAULT VALUES ON CONFLICT DO NOTHING;

-- Instances that EC2 did not know when it was asked.
CREATE TABLE IF NOT EXISTS reconciler.absences (
    workspace_id  UUID PRIMARY KEY,
    instance_id   TEXT NOT NULL,
    sightings     INTEGER NOT NULL,
    first_seen_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    last_seen_at  TIMESTAMPTZ NOT NULL DEFAULT now()
);
COMMENT ON TABLE reconciler.absences IS
    'EC2 is eventually consistent: an instance counts as gone after repeated sightings only.';

-- Restarts: owed from the flip on, until the platform has taken them or the row has moved on.
CREATE TABLE IF NOT EXISTS reconciler.restarts (
    id              BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workspace_id    UUID NOT NULL,
    instance_id     TEXT NOT NULL,
    cycle_id        UUID NOT NULL,
    flipped_at      TIMESTAMPTZ NOT NULL DEFAULT now(),
    attempts        INTEGER NOT NULL DEFAULT 0,
    refusals        INTEGER NOT NULL DEFAULT 0,
    claimed_by      UUID,
    asked_at        TIMESTAMPTZ,
    next_attempt_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    last_answer     TEXT,
    closed_at       TIMESTAMPTZ,
    outcome         TEXT CHECK (outcome IN ('paid', 'void'))
);
-- These came later: a table that an earlier version made gets them here.
ALTER TABLE reconciler.restarts
    ADD COLUMN IF NOT EXISTS streak        INTEGER NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS paused_until  TIMESTAMPTZ,
    ADD COLUMN IF NOT EXISTS watched_until TIMESTAMPTZ;
COMMENT ON TABLE reconciler.restarts IS 'One debt per flip. Closed ones are kept for 30 days.';
COMMENT ON COLUMN reconciler.restarts.attempts IS 'Claims so far. A claim is written before the call.';
COMMENT ON COLUMN reconciler.restarts.refusals IS 'Definite refusals so far; each doubles the pause.';
COMMENT ON COLUMN reconciler.restarts.next_attempt_at IS
    'Not asked for before this. A claim moves it ahead, so that a crash cannot pay twice.';
COMMENT ON COLUMN reconciler.restarts.last_answer IS 'asked, refused, blocked or uncertain.';
COMMENT ON COLUMN reconciler.restarts.streak IS 'Restarts before this one without a stretch of health between.';
COMMENT ON COLUMN reconciler.restarts.paused_until IS 'A crash loop''s pause: not asked for before this.';
COMMENT ON COLUMN reconciler.restarts.watched_until IS
    'When a cycle first saw the restarted workspace online again, or not wanted any more.';
CREATE UNIQUE INDEX IF NOT EXISTS restarts_one_open_per_workspace
    ON reconciler.restarts (workspace_id) WHERE closed_at IS NULL;
CREATE INDEX IF NOT EXISTS restarts_due ON reconciler.restarts (next_attempt_at) WHERE closed_at IS NULL;
CREATE INDEX IF NOT EXISTS restarts_flipped_at ON reconciler.restarts (flipped_at);
CREATE INDEX IF NOT EXISTS restarts_workspace ON reconciler.restarts (workspace_id, asked_at);
CREATE INDEX IF NOT EXISTS restarts_unrecovered
    ON reconciler.restarts (workspace_id) WHERE outcome = 'paid' AND watched_until IS NULL;

-- Workspaces that nobody is to flip or restart for a while, say for maintenance.
CREATE TABLE IF NOT EXISTS reconciler.holds (
    workspace_id UUID PRIMARY KEY,
    reason       TEXT NOT NULL,
    began_at     TIMESTAMPTZ NOT NULL DEFAULT now(),
    ends_at      TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE reconciler.holds IS 'Exempt until ends_at; placed and ended by events of the reconciler''s function.';
